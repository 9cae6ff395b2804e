"""Every figure of a run's iterations: its name, value, unit, interval, what it means, and how it is written.

There are two sets of them: the table of a run (FIGURES, from manifests) and the collapse panel (the
measurements of pipeline/runs/panel.py). Every view shows these figures; none computes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.pipeline.report.judging import JUDGES, OPPONENTS, are_independent, left_out, win_rate_name
from sparring.pipeline.runs.panel import GROUPS, SOURCES, Panel, Source
from sparring.pipeline.runs.run_history import Steps
from sparring.stages.evaluate.bootstrap import Estimate, detectable_of, outcome
from sparring.stages.plain import counts_text, interval_text


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of one iteration."""

    name: str
    """Its key in the JSON."""
    value: Any
    """A number; of a win rate the row of `evaluate` with its finding; of dropped pairs reason -> count."""
    text: str
    """The value as it is written."""
    unit: str
    meaning: str
    """What it is a figure of."""
    low: float | None = None
    high: float | None = None
    """Ends of its interval over prompts, where it has one."""
    sentence: str = ""
    """What it says, of a win rate."""
    step: str = ""
    key: str = ""
    """Where it was read: the step's label, and the key of its summary or of metrics.jsonl."""

    @property
    def verdict(self) -> str:
        """Of a win rate: better, worse, open (no difference is detectable), or '' where nothing was judged."""
        if self.value["win_rate"] is None:
            return ""
        return str(self.value["finding"]) if self.value["finding"] in ("better", "worse") else "open"

    @property
    def interval(self) -> str:
        """Of a win rate: `0.565 [0.541, 0.590]`, or `no prompts`."""
        return self.text.partition("\n")[0]


Figures = Mapping[str, Figure]
"""name -> figure of one iteration, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class FigureRow:
    """A figure in all iterations, as tables show it."""

    name: str
    title: str
    """Its name, or in the panel what it means, with the number of pairs that it is of."""
    cells: Sequence[str]
    """'' in an iteration that does not have it."""


def iteration_figures(t: int, steps: Steps, panel: Panel | None) -> dict[str, Figure]:
    """Return the figures of the table that iteration t has."""
    made = (source.figure(t, steps, panel) for source in FIGURES)
    return {figure.name: figure for figure in made if figure}


# Win rates


@dataclass(frozen=True, kw_only=True)
class WinRateSource:
    """A win rate of the new policy, or (label `evaluate_best`) of its best of n responses."""

    name: str
    judge: str
    opponent: str
    label: str = "evaluate"

    def figure(self, t: int, steps: Steps, panel: Panel | None = None) -> Figure | None:
        """Return the figure of iteration t, None where `evaluate` does not have it."""
        summary = steps[self.label].summary if self.label in steps else {"comparisons": []}
        rows = (row for row in summary["comparisons"] if (row["judge"], row["opponent"]) == (self.judge, self.opponent))
        first = next(rows, None)
        if first is None:
            return None
        row = with_finding(first, summary.get("confidence", 0.95))
        return Figure(
            name=self.name, value=row, text=win_rate_text(row), unit="win rate", low=row["low"], high=row["high"],
            meaning=f"probability that the {JUDGES[self.judge]} prefers its responses, mean over held-out prompts",
            sentence=_sentence(t, steps, row) if self.label == "evaluate" else "", step=self.label,
            key=f"{self.judge} vs {self.opponent}",
        )  # fmt: skip


def with_finding(row: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """Return a row of `evaluate` with `detectable`, the least detectable difference from 1/2, and `finding`.

    finding: better, worse, none (no difference detectable), or unknown where fewer than two prompts were judged.
    """
    if row["win_rate"] is None:
        return {**row, "detectable": None, "finding": "unknown"}
    least = detectable_of(row["low"], row["high"], confidence)
    ends = {name: row[key] - 0.5 for name, key in (("mean", "win_rate"), ("low", "low"), ("high", "high"))}
    return {**row, "detectable": least, "finding": outcome(Estimate(**ends, n=row.get("n", 2)), least)}


def win_rate_text(row: Mapping[str, Any]) -> str:
    """Return `0.540 [0.512, 0.568]`, with "not informative" where the interval contains 1/2, and what is too small."""
    if row["win_rate"] is None:
        return "no prompts"
    text = interval_text(row["win_rate"], row["low"], row["high"])
    if not row["informative"]:
        return f"{text}\nnot informative"
    return text if row["finding"] in ("better", "worse") else f"{text}\nno difference detectable"


def _sentence(t: int, steps: Steps, row: Mapping[str, Any]) -> str:
    """Return what a win rate says, by whose judgement, on how many prompts."""
    judge, why = f"the {JUDGES[row['judge']]}", left_out(steps, row)
    unseen = row["judge"] == "second" and are_independent(steps)
    who = f"By {judge}{', which training never saw,' if unseen else ''}"
    if row["win_rate"] is None:
        return f"{judge[0].upper()}{judge[1:]} says nothing, as no held-out prompt is left: left out are {why}."
    if row["finding"] in ("better", "worse"):
        verdict = row["finding"]
    elif row["informative"]:
        verdict = f"no difference detectable, as it takes more than {row['detectable']:.3f} on so many prompts"
    else:
        verdict = "not informative, as the interval contains ½"
    interval = interval_text(row["win_rate"], row["low"], row["high"])
    on = f"the mean over {row.get('n')} prompts{f', with {why} left out' if why else ''}"
    return f"{who} iteration {t} beats {OPPONENTS[row['opponent']]} with probability {interval}, {on}: {verdict}."


# The table


@dataclass(frozen=True, kw_only=True)
class NumberSource:
    """A number of the manifests. value: None where an iteration does not have it."""

    name: str
    unit: str
    meaning: str
    value: Callable[[Steps], Any]
    write: Callable[[Any], str]

    def figure(self, t: int, steps: Steps, panel: Panel | None = None) -> Figure | None:
        """Return the figure, None where the steps do not have it."""
        value = self.value(steps)
        if value is None:
            return None
        return Figure(name=self.name, value=value, text=self.write(value), unit=self.unit, meaning=self.meaning)


@dataclass(frozen=True, kw_only=True)
class EstimateSource:
    """A measurement of the panel that was estimated on samples, with its interval."""

    name: str
    measurement: str

    def figure(self, t: int, steps: Steps, panel: Panel | None = None) -> Figure | None:
        """Return the figure, None where the panel does not have it."""
        value, low, high = (panel.get(f"{self.measurement}{end}") if panel else None for end in ("", "_low", "_high"))
        if value is None or low is None or high is None:
            return None
        return Figure(
            name=self.name, value={"value": value, "low": low, "high": high}, unit="nats", low=low, high=high,
            text=interval_text(value, low, high), meaning=SOURCES[self.measurement].meaning,
        )  # fmt: skip


def _number(name: str, step: str, key: str, form: str, unit: str, meaning: str) -> NumberSource:
    """Return a number of a step's summary."""
    return NumberSource(
        name=name, unit=unit, meaning=meaning, write=lambda number: format(number, form),
        value=lambda steps: steps[step].summary.get(key) if step in steps else None,
    )  # fmt: skip


def _measured(name: str, measurement: str, form: str) -> NumberSource:
    """Return a measurement of the panel under the table's name."""
    source = SOURCES[measurement]
    return _number(name, source.step, source.key, form, source.unit, source.meaning.replace(" ({pairs})", ""))


def _rate(name: str, step: str, meaning: str) -> NumberSource:
    def value(steps: Steps) -> float | None:
        manifest = steps.get(step)
        tokens = manifest.stats.get("tokens") if manifest else None
        return tokens / manifest.seconds if manifest and tokens and manifest.seconds else None

    return NumberSource(name=name, unit="tokens/s", meaning=meaning, value=value, write="{:.0f}".format)


def _seconds(part: str, *labels: str, where: Callable[[str], bool] | None = None) -> NumberSource:
    """Return the seconds of the steps with these labels; an artifact with two labels is counted once."""
    counts = where or (lambda label: label in labels)

    def value(steps: Steps) -> float | None:
        seconds = {manifest.fingerprint: manifest.seconds for label, manifest in steps.items() if counts(label)}
        return sum(seconds.values()) if seconds else None

    meaning = "work of its steps, over the workers side by side"
    return NumberSource(name=f"seconds: {part}", unit="s", meaning=meaning, value=value, write="{:.1f}".format)


def _pairs(name: str, key: str, write: Callable[[Any], str], meaning: str) -> NumberSource:
    return NumberSource(
        name=name, unit="pairs", meaning=meaning, write=write,
        value=lambda steps: steps["pairs"].rows[key] if "pairs" in steps else None,
    )  # fmt: skip


JUDGED = tuple((judge, opponent) for judge in JUDGES for opponent in ("previous", "base"))
"""(judge, opponent) of each win rate of an iteration."""

FIGURES: tuple[NumberSource | WinRateSource | EstimateSource, ...] = (
    _number("prompts", "sample", "prompts", "d", "prompts", "prompts with responses to train on"),
    _number("responses", "sample", "responses", "d", "responses", "responses to them, by the policy before"),
    _pairs("pairs kept", "out", str, "pairs of a chosen and a rejected response to train on"),
    _pairs(
        "pairs dropped", "dropped", lambda dropped: counts_text(dropped) or "0", "prompts without a pair, by reason"
    ),
    _measured("response tokens, mean", "played_length_mean", ".1f"),
    _measured("response tokens, p95", "played_length_p95", ".0f"),
    _measured("ties of the oracle", "ties", ".1%"),
    _measured("winner changes with the order", "position_disagreement", ".1%"),
    _measured("cycles of P", "cycle_rate", ".1%"),
    _measured("win rate ~ length, correlation", "length_correlation", "+.2f"),
    _measured("similarity, mean", "similarity", ".3f"),
    _measured("|P̃-P|, mean", "shift", ".4f"),
    _measured("pairs turned by the gate", "flips", "d"),
    *(WinRateSource(name=win_rate_name(judge, opponent), judge=judge, opponent=opponent) for judge, opponent in JUDGED),
    _number("best of n: responses", "best", "n", "d", "responses", "of which the oracle takes the best"),
    *(
        WinRateSource(
            name=f"best of n, {win_rate_name(judge, named)}", judge=judge, opponent=opponent, label="evaluate_best"
        )
        for judge in JUDGES
        for opponent, named in (("single", "one response"), ("base", "base"))
    ),
    _number("best of n: tokens, mean", "best", "length_mean", ".1f", "tokens", "length of the best responses"),
    EstimateSource(name="KL to the previous policy, nats", measurement="kl_previous"),
    EstimateSource(name="KL to the base, nats", measurement="kl_base"),
    EstimateSource(name="log-ratio to the previous policy under the sampling, nats", measurement="log_ratio_previous"),
    EstimateSource(name="log-ratio to the base under the sampling, nats", measurement="log_ratio_base"),
    _number("optimizer steps", "train", "steps", "d", "steps", "updates of the weights"),
    _measured("h chosen after training ({pairs})", "probe_h_w", "+.3f"),
    _measured("h rejected after training ({pairs})", "probe_h_l", "+.3f"),
    _measured("|h| before training, noise (8 pairs at most)", "noise", ".1e"),
    _measured("parameters changed", "changed_fraction", ".1%"),
    _measured("pairs in the band, measured on the output head", "in_band", ".1%"),
    _measured("pairs with ρ ≤ 0 there: any ratio serves", "rho_negative", ".1%"),
    _measured("pairs reversed", "reversed", ".1%"),
    _number("repulsion's gradient / objective's", "train", "repulsion_ratio", ".3f", "ratio", "of their norms"),
    _number(
        "‖u_w-u_l‖ of the first batch, before training", "train", "distance_new", ".3f", "distance", "of its states"
    ),
    _number("reward calibration δ, last step", "train", "delta", ".3f", "nats", "the offset that it subtracts"),
    _rate("sampled tokens/s", "sample", "tokens of responses over seconds of work"),
    _rate("trained tokens/s", "train", "tokens of pairs over seconds of work"),
    _seconds("prompts", "prompts"),
    _seconds("sample", "sample"),
    _seconds("score", "score"),
    _seconds("embed", "embed"),
    _seconds("pairs, calibrate", "pairs", "calibrate"),
    _seconds("reference", "reference", "reference_base"),
    _seconds("train", "train"),
    _seconds("held-out sample", "sample_base", "sample_heldout"),
    _seconds("evaluate", *(f"score_{judge}_{opponent}" for judge, opponent in JUDGED), "evaluate"),
    _seconds("KL", where=lambda label: label.startswith("logprobs")),
    _seconds("cross-play", where=lambda label: label == "crossplay" or "_vs" in label),
    _seconds("best of n", where=lambda label: "best" in label),
)


# The collapse panel


UNCOUNTED = "the first batch's 8 shortest"
"""What h after training was of before the pairs were drawn: such artifacts do not state their count."""


def panel_figures(panel: Panel) -> dict[str, Figure]:
    """Return every measurement of an iteration as a figure; ends of intervals are figures of their own, too."""
    figures = {}
    for name, one in panel.figures.items():
        low, high = (panel.figures.get(f"{name}{end}") for end in ("_low", "_high"))
        text = one.text if low is None or high is None else f"{one.text} [{low.text}, {high.text}]"
        figures[name] = Figure(
            name=name, value=one.value, text=text, unit=one.unit, step=one.step, key=one.key,
            meaning=SOURCES[name].meaning.replace("{pairs}", pairs_of([panel])) if name in SOURCES else "",
            low=low.value if low else None, high=high.value if high else None,
        )  # fmt: skip
    return figures


def panel_groups(panel: Mapping[int, Figures], panels: Sequence[Panel]) -> list[tuple[str, list[FigureRow]]]:
    """Return title and rows of each group that has any; figures without words come last, under their names."""
    named: dict[str, None] = {}
    for figures in panel.values():
        ends = {f"{name}{end}" for name in figures for end in ("_low", "_high")}
        named |= dict.fromkeys(name for name in figures if name not in ends)
    others = tuple(Source(name, "", "") for name in named if name not in SOURCES)
    groups = []
    for title, sources in {**GROUPS, "others": others}.items():
        rows = [
            FigureRow(
                name=one.name,
                title=one.meaning.replace("{pairs}", pairs_of(panels)),
                cells=[figures[one.name].text if one.name in figures else "" for figures in panel.values()],
            )
            for one in sources
            if one.name in named
        ]
        groups += [(title, rows)] if rows else []
    return groups


def pairs_of(panels: Sequence[Panel]) -> str:
    """Return how many training pairs h after training is of: `64 pairs`, `64, 40 pairs` of two iterations."""
    counts = (panel.get("probe_pairs") if "probe_h_w" in panel.figures else 0 for panel in panels)
    known = dict.fromkeys(UNCOUNTED if count is None else f"{count:.0f}" for count in counts if count != 0)
    return f"{', '.join(known)} pairs"


def notes(steps: Steps) -> list[str]:
    """Return what must be said of an iteration's prompts and of what was imported."""
    lines = []
    made = (steps[label] for label in ("pairs", "sample") if label in steps)
    for one in [manifest for manifest in made if manifest.imported][:1]:
        given = one.summary["provenance"]
        lines.append(f"{one.step} imported: {one.rows['out']:,} of the {given['rows']:,} rows of {given['path']}")
    if "sample" in steps and steps["sample"].summary.get("redealt"):
        lines.append("the prompts were dealt again under a new permutation: they had been played before")
    if "evaluate_best" in steps:
        lines.append("best of n: the oracle judges here what it chose itself; the second judge did not choose")
    for label in ("prompts", "sample", "sample_base", "sample_heldout"):
        manifest = steps.get(label)
        dropped = manifest.rows["dropped"] if manifest and not manifest.imported else {}
        if dropped:
            lines.append(f"{label}: prompts dropped: {counts_text(dropped)}")
    return lines
