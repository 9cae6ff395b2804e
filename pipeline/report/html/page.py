"""The page: what each section shows, from the report's data; the templates write it. The answer comes first.

Style and script are inside; everything else is forbidden by the page's policy. The prompts have the bytes that the
other sections leave.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparring.pipeline.report import comparison, crossplay
from sparring.pipeline.report.answer import highest_arm
from sparring.pipeline.report.comparison import Comparison
from sparring.pipeline.report.cost import cost_of, stretches
from sparring.pipeline.report.data import ArmReport, ReportData
from sparring.pipeline.report.details import ArmDetails
from sparring.pipeline.report.html.axes import number
from sparring.pipeline.report.html.charts import (
    DRAWN,
    Chart,
    Point,
    Series,
    Whisker,
    bar_chart,
    heat_map,
    histogram_chart,
    line_chart,
    timeline_chart,
    whisker_chart,
)
from sparring.pipeline.report.judging import JUDGES, OPPONENTS, win_rate_name
from sparring.pipeline.report.prompts import DRAWN as DRAWN_PROMPTS
from sparring.pipeline.report.prompts import WIDEST, Prompt, ShownPrompts
from sparring.pipeline.report.spread import Histogram
from sparring.pipeline.report.suites import NAMES
from sparring.pipeline.runs.rules import RULES
from sparring.stages.plain import interval_text, printable

FOLDER = Path(__file__).parent
SYMBOLS = {"good": "▲", "bad": "▼", "open": "◆", "alarm": "⚠"}
"""What stands before the answer: its tone is clear without its colour."""
SECTIONS, BUDGET = 2_700_000, 1_500_000
"""Bytes of all sections together, and of the prompts at most; with style and script the page stays below 3 MB."""
SHARED, FEWEST = 2400, 40
"""Points of the lines of one kind over all arms, and of each line at least."""
UNFOLDED = 8
"""Warnings up to which their box is unfolded."""
BOXED = 72
"""Iterations of all arms together that have boxes of their own in a section."""
LIMITS = {"title": 90, "turn": 1000, "response": 700, "matrix": 12, "widest": WIDEST, "drawn": DRAWN_PROMPTS}
"""Characters of a folded prompt, of a turn and of a response; responses up to which matrices are shown."""
LOOKS = {"oracle": 0, "second": 1}
"""Numbers of marker, dashes and colour."""
LENGTHS = {
    "length_mean": ("Tokens of held-out responses, mean", 1.0),
    "length_p95": ("Tokens of held-out responses, p95", 1.0),
    "cap_rate": ("Held-out responses cut at the limit, %", 100.0),
}
TRAINING = {
    "Loss": {"loss": "loss"},
    "Log-ratio to the reference, nats": {"h_w": "chosen, h_w", "h_l": "rejected, h_l"},
    "Gradient norm before clipping": {"grad_norm": "grad_norm"},
}
BAND = {
    "Pairs in the band, measured on the output head, %": {
        "in_band": "in the band",
        "reversed": "reversed",
        "rho_negative": "ρ ≤ 0: any ratio serves",
    },
    "Incentives d_w/d_l, and r* of the output head": {"incentive_ratio": "d_w/d_l", "r_star": "r*"},
    "Distance of states ‖u_w − u_l‖": {"distance": "distance"},
}
"""Title of a chart -> key in a training's records -> name of its line. Titles that end with % are of shares."""


def page(report: ReportData, details: Sequence[ArmDetails]) -> str:
    """Return the document."""
    environment, arms = templates(), report.arms
    most = max(1, BOXED // max(1, *(len(arm.figures) for arm in arms)))
    shown = list(zip(arms, details, strict=True))
    data = {
        "report": report,
        "shown": shown[:most],
        "points": min(DRAWN, max(FEWEST, SHARED // len(arms))),
        "rest": f"The first {most} of {len(arms)} arms; a report of fewer arms shows the others."
        if arms[most:]
        else "",
        **_top(arms),
        **_prompts(shown),
    }
    sections = environment.get_template("sections.html.jinja").module
    before, after = sections.before(data), sections.after(data)  # type: ignore[attr-defined]
    most_bytes = min(BUDGET, SECTIONS - len(before.encode()) - len(after.encode()))
    cards = list(_cards(data["groups"], most_bytes))
    return environment.get_template("page.html.jinja").render(page=data, before=before, after=after, cards=cards)


@cache
def templates() -> Environment:
    """Return the environment in which every text is escaped, and control and bidi characters are spelled out."""

    def finalize(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cut": cut, "one_line": one_line, "number": number}
    environment.globals |= {
        "names": NAMES,
        "limits": LIMITS,
        "comparison": comparison,
        "TRAINING": TRAINING,
        "BAND": BAND,
    }
    called = (
        win_rate_charts, length_charts, training_charts, difference_chart, bar_chart, timeline_chart, game_maps,
        spreads, cost_of, stretches, made_of,
    )  # fmt: skip
    environment.globals |= {function.__name__: function for function in called}
    return environment


def cut(text: str, most: int) -> str:
    """Return at most `most` characters, and how many were left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def one_line(text: str, most: int) -> str:
    """Return the words of a text, at most `most` characters of them."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]} …"


def policy(style: str, script: str) -> str:
    """Return the content security policy under which nothing is loaded, and only these two texts are applied."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    of_style, of_script = (f"'sha256-{one}'" for one in hashes)
    return f"default-src 'none'; style-src {of_style}; script-src {of_script}; base-uri 'none'; form-action 'none'"


# Above the sections


def _top(arms: Sequence[ArmReport]) -> dict[str, Any]:
    """Return style and script, and what is said of several arms at once."""
    style, script = (Markup((FOLDER / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    created = (str(m.made_with.get("created", "")) for arm in arms for _, _, m in arm.history.artifacts())
    warnings = [(arm.label, f"iteration {one.iteration}: {one}") for arm in arms for one in arm.warnings]
    notes = [(arm.label, f"iteration {t}: {line}") for arm in arms for t, lines in arm.notes.items() for line in lines]
    judges = dict.fromkeys(line for arm in arms if arm.answer.iteration for line in arm.judges)
    last = [(arm.label, arm.answer.iteration, arm.win_rate(arm.answer.iteration, "second")) for arm in arms]
    return {
        "style": style,
        "script": script,
        "policy": policy(style, script),
        "made": max(created, default="")[:16].replace("T", " "),
        "symbols": SYMBOLS,
        "highest": highest_arm(last),
        "warnings": _by_line(warnings, len(arms)),
        "unfolded": UNFOLDED,
        "rules": [rule for rule in RULES if any(rule == one.rule for arm in arms for one in arm.warnings)],
        "notes": [*_by_line(notes, len(arms)), *(f"what the judges are worth: {line}" for line in judges)],
    }


def _by_line(said: Sequence[tuple[str, str]], arms: int) -> list[str]:
    """Return the lines, each once, with the labels of the arms that it is said of unless it is said of all."""
    by_line: dict[str, list[str]] = {}
    for label, line in said:
        by_line.setdefault(line, []).append(label)
    return [line if len(labels) == arms else f"{', '.join(labels)}: {line}" for line, labels in by_line.items()]


def made_of(arms: Sequence[ArmReport]) -> list[tuple[str, str, list[str]]]:
    """Return (name, kind, values) of code, packages and hardware; several values where steps differ."""
    kinds: dict[str, dict[str, set[str]]] = {"code": {}, "packages": {}, "hardware": {}}
    for manifest in (manifest for arm in arms for _, _, manifest in arm.history.artifacts()):
        for kind, known in kinds.items():
            for name, value in (manifest.made_with.get(kind) or {}).items():
                known.setdefault(name, set()).add(value if isinstance(value, str) else json.dumps(value))
    return [(name, kind, sorted(values)) for kind, known in kinds.items() for name, values in known.items()]


# The charts of the sections


def difference_chart(comparisons: Sequence[Comparison]) -> Chart | None:
    """Return the differences of win rates of the arms that are compared, None without any."""
    by_arm: dict[str, list[Whisker]] = {}
    for one in comparisons:
        if not one.why:
            ends = {"value": one.estimate.mean, "low": one.estimate.low, "high": one.estimate.high}
            whisker = Whisker(name=JUDGES[one.judge], look=LOOKS[one.judge], **ends)
            by_arm.setdefault(f"{one.arm}, iteration {one.iteration}", []).append(whisker)
    return whisker_chart("Difference of win rates", "← worse · better →", [*by_arm.items()])


def win_rate_charts(arms: Sequence[ArmReport]) -> list[Chart | None]:
    """Return the win rates over iterations: by judge for one arm, by arm for several."""

    def line(name: str, look: int, arm: ArmReport, judge: str, opponent: str) -> Series:
        rates = {t: of.get(win_rate_name(judge, opponent)) for t, of in arm.figures.items()}
        known = {t: one for t, one in rates.items() if one and one.verdict}
        points = [Point(x=t, y=one.value["win_rate"], low=one.low, high=one.high) for t, one in known.items()]
        return Series(name=name, look=look, points=points)

    if len(arms) == 1:
        drawn = {
            f"Win rate against {named}": [
                line(JUDGES[one], look, arms[0], one, opponent) for one, look in LOOKS.items()
            ]
            for opponent, named in OPPONENTS.items()
        }
    else:
        drawn = {
            f"Win rate against the base, {named}": [
                line(arm.label, look, arm, judge, "base") for look, arm in enumerate(arms)
            ]
            for judge, named in JUDGES.items()
        }
    return [line_chart(title, series, level=0.5, dodge=True) for title, series in drawn.items()]


def length_charts(arms: Sequence[ArmReport]) -> list[Chart | None]:
    """Return what held-out responses are like, by policy: 0 is the base."""
    charts = []
    for key, (title, factor) in LENGTHS.items():
        series = []
        for look, arm in enumerate(arms):
            labels = {t: "sample_heldout" if t else "sample_base" for t in arm.history.steps}
            made = {t: arm.history.manifest(t, label) for t, label in labels.items()}
            values = {t: manifest.summary.get(key) for t, manifest in made.items() if manifest}
            points = [Point(x=t, y=factor * value) for t, value in values.items() if value is not None]
            series.append(Series(name=arm.label, look=look, points=points))
        charts.append(line_chart(title, series, x_name="policy (0: the base)", dodge=len(arms) > 1))
    return charts


def training_charts(details: ArmDetails, shown: Mapping[str, Mapping[str, str]], most: int) -> list[Chart | None]:
    """Return the charts of TRAINING or BAND, over all optimizer steps; most: points of a line."""
    return [_over_steps(details, title, keys, most) for title, keys in shown.items()]


def _over_steps(details: ArmDetails, title: str, keys: Mapping[str, str], most: int) -> Chart | None:
    """Return lines over all optimizer steps, parted by iteration."""
    factor, series, begins, steps = 100.0 if title.endswith("%") else 1.0, [], {}, 0
    for t, rows in details.records.items():
        begins[t] = steps
        steps += rows[-1]["step"]
    for look, (key, name) in enumerate(keys.items()):
        points: list[Point | None] = []
        for t, rows in details.records.items():
            known = [row for row in rows if isinstance(row.get(key), int | float) and math.isfinite(row[key])]
            points += [Point(x=begins[t] + row["step"], y=factor * row[key]) for row in known]
            points.append(None)
        series.append(Series(name=name, look=look, points=points[:-1]))
    splits = [(begin + 0.5, f"iteration {t}") for t, begin in begins.items()] if len(begins) > 1 else ()
    return line_chart(title, series, x_name="optimizer step", most=most, splits=splits)


def game_maps(arm: ArmReport, details: ArmDetails) -> dict[str, Any] | None:
    """Return a heat map for each judge, what kind of game that is, and every interval; None where none have met."""
    judges = [judge for judge in JUDGES if details.scored.get(judge) or judge in arm.games]
    if not judges:
        return None

    def named(policy: int, blank: str = " ") -> str:
        return f"iter{blank}{policy}" if policy else "base"

    maps = []
    for judge in judges:
        game, cells = arm.games.get(judge), dict(details.scored.get(judge, {}))
        ends = crossplay.intervals(game) if game else {}
        cells |= {(i, j): game["win_rates"][i][j] for i, j in ends} if game else {}
        places = {i: place for place, i in enumerate(sorted({i for pair in cells for i in pair}))}
        drawn = heat_map(
            f"Row beats column, {JUDGES[judge]}",
            [named(i) for i in places],
            {(places[i], places[j]): value for (i, j), value in cells.items()},
            {(places[i], places[j]): pair for (i, j), pair in ends.items()},
        )
        lines = crossplay.sentences(game, lambda i: named(i, "\u00a0")) if game else []
        maps.append((drawn, [line[0].upper() + line[1:] for line in lines]))
    if not arm.games:
        return {"maps": maps, "note": ""}
    last = max(len(game["win_rates"]) for game in arm.games.values()) - 1
    played = max((i for cells in details.scored.values() for i, _ in cells), default=last)
    upto = f" What stands below the maps is of the policies up to iteration {last}." if last < played else ""
    every = {judge: crossplay.intervals(game) for judge, game in arm.games.items()}
    rates = [
        [
            f"{named(i)} against {named(j)}",
            *(
                interval_text(game["win_rates"][i][j], *every[judge][i, j]) if (i, j) in every[judge] else ""
                for judge, game in arm.games.items()
            ),
        ]
        for i, j in sorted({(i, j) for ends in every.values() for i, j in ends if i > j})
    ]
    return {
        "maps": maps,
        "note": f"~ stands where the interval contains ½: who is better is not known.{upto}",
        "heads": ["", *(JUDGES[judge] for judge in arm.games)],
        "rates": rates,
    }


def spreads(arm: ArmReport, details: ArmDetails) -> list[tuple[int, str, list[Chart | None]]]:
    """Return (iteration, what the gate leaves, histograms), of iterations that have pairs."""

    def summed(name: str, shape: Mapping[str, Any]) -> Histogram:
        return Histogram(name=name, low=shape["low"], high=shape["high"], counts=shape["counts"])

    sections = []
    for t, one in details.spreads.items():
        made = (arm.history.manifest(t, label) for label in ("embed", "calibrate"))
        embed, gate = (manifest.summary if manifest else {} for manifest in made)
        drawn = [histogram_chart("Win rates p, %", "p", one.rates)]
        if embed.get("similarity"):
            similarity = summed("similarity", embed["similarity"])
            drawn.append(histogram_chart("Similarity of two responses, %", "cosine s", similarity))
        drawn.append(histogram_chart("How clear preferences are, %", "|P − ½|", one.before, one.after))
        if one.after and gate.get("g"):
            drawn.append(histogram_chart("Gate of two responses, %", "g", summed("gate", gate["g"])))
        left = gate.get("strength") if one.after else None
        said = "No gate." if left is None else f"The gate leaves {left:.0%} of the targets' distance from ½."
        sections.append((t, said, drawn))
    return sections


# The prompts


def _prompts(shown: Sequence[tuple[ArmReport, ArmDetails]]) -> dict[str, Any]:
    """Return the prompts by iteration and arms, and what the fields that filter them offer."""
    shared: dict[int, tuple[int, list[str], ShownPrompts]] = {}
    for arm, details in shown:
        for t, prompts in details.prompts.items():  # prompts that arms share are shown once, under all their labels
            shared.setdefault(id(prompts), (t, [], prompts))[1].append(arm.label)
    groups = [
        (t, ", ".join(labels) if len(shown) > 1 else "", prompts)
        for t, labels, prompts in sorted(shared.values(), key=lambda one: one[0])
    ]
    return {
        "groups": groups,
        "every_prompt": sum(prompts.of for _, _, prompts in groups),
        "prompt_iterations": sorted({t for t, _, _ in groups}),
        "prompt_arms": list(dict.fromkeys(labels for _, labels, _ in groups)),
        "outcomes": sorted({p.outcome for _, _, prompts in groups for p in prompts.prompts if p.outcome}),
    }


def _cards(groups: Sequence[tuple[int, str, ShownPrompts]], most_bytes: int) -> Iterator[Markup]:
    """Yield the prompts that fit into `most_bytes` bytes, an equal share for each group."""
    write = templates().get_template("parts.html.jinja").module.prompt  # type: ignore[attr-defined]
    for t, labels, prompts in groups:
        left = most_bytes // len(groups)
        for prompt in mixed(prompts.prompts):
            card = write(t, labels, prompt)
            left -= len(card.encode())
            if left < 0:
                break
            yield card


def mixed(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts with those that are drawn between the widest: where few fit both kinds remain."""
    half = -(-len(prompts) // 2)
    pairs = zip(prompts[:half], [*prompts[half:], None], strict=False)
    return [one for pair in pairs for one in pair if one]
