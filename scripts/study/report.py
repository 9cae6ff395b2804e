"""The report of a study: report.md and rows.json in the folder of its run, and the same tables on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.study.compare import ArmsAtIteration, judged
from scripts.study.presets import Study
from scripts.study.read import FIGURES, Policy, StudyData
from scripts.study.words import limits, verdicts
from sparring.pipeline.config.model import Config
from sparring.pipeline.report.comparison import interval
from sparring.pipeline.report.judging import JUDGES as JUDGE_NAMES
from sparring.pipeline.report.judging import worth_of_judges
from sparring.stages.evaluate.bootstrap import Bootstrap, Estimate
from sparring.stages.evaluate.stage import JUDGES

BEHAVIOUR = (
    "Length, diversity, training: means over seeds; in play: of the previous policy's responses, trained on here"
)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table, for the terminal and for markdown."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The report of a study."""

    title: str
    about: tuple[str, ...]
    verdicts: tuple[str, ...]
    limits: tuple[str, ...]
    grids: tuple[Grid, ...]
    rows: tuple[dict[str, Any], ...]


def rounds(policies: Sequence[Policy], study: Study, settings: Bootstrap) -> list[ArmsAtIteration]:
    """Compare the arms at each iteration, by each judge."""
    found = []
    for t in sorted({policy.iteration for policy in policies}):
        for judge in JUDGES:
            rates: dict[str, dict[int, Mapping[str, float]]] = {}
            for policy in policies:
                if policy.iteration == t:
                    rates.setdefault(policy.arm, {})[policy.seed] = policy.rates[judge]
            found.append(judged(t, judge, rates, study.comparisons(rates), settings))
    return found


def last_of(found: Sequence[ArmsAtIteration]) -> list[ArmsAtIteration]:
    """Return the latest iteration among those that most arms have reached."""
    most = max((len(one.arms) for one in found), default=0)
    last = max((one.iteration for one in found if len(one.arms) == most), default=0)
    return [one for one in found if one.iteration == last]


def averaged(policies: Sequence[Policy]) -> dict[tuple[str, int], dict[str, float]]:
    """Return (arm, iteration) -> figure -> mean over the seeds that have it."""
    grouped: dict[tuple[str, int], list[Mapping[str, float]]] = {}
    for policy in policies:
        grouped.setdefault((policy.arm, policy.iteration), []).append(policy.figures)
    return {place: mean_of(figures) for place, figures in grouped.items()}


def mean_of(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return name -> mean over those that have it."""
    names = dict.fromkeys(name for one in figures for name in one)
    return {name: fmean(one[name] for one in figures if name in one) for name in names}


def make(
    name: str, study: Study, data: StudyData, config: Config, planned: int
) -> tuple[Report, list[ArmsAtIteration]]:
    """Return the report, and what the figure draws. planned: policies that the study will have when it is done."""
    settings = Bootstrap(resamples=config.evaluate.resamples, confidence=config.evaluate.confidence)
    compared = rounds(data.policies, study, settings)
    last, figures = last_of(compared), averaged(data.policies)
    grids = (_wins(compared), _apart(compared), _behaviour(figures, data.base))
    report = Report(
        title=f"Study {name}",
        about=tuple(_about(study, data, config, planned)),
        verdicts=tuple(verdicts(last, settings.confidence)),
        limits=tuple(limits(last, settings.confidence)),
        grids=tuple(grid for grid in grids if grid.rows),
        rows=tuple(_rows(compared, figures)),
    )
    return report, compared


def _about(study: Study, data: StudyData, config: Config, planned: int) -> list[str]:
    made = next(iter(data.last.values())).made_with if data.last else {}
    hardware, seconds = made.get("hardware", {}), sum(m.seconds for m in data.manifests.values())
    seeds = sorted({policy.seed for policy in data.policies})
    lines = [
        f"{len(data.policies)} of {planned} policies are trained and evaluated; seeds {', '.join(map(str, seeds))}.",
        f"{config.policy.name}; {config.prompts.per_iteration} prompts an iteration, K={config.sampler.k}, "
        f"{config.sampler.max_tokens} tokens at most; lr {config.trainer.lr:g}, global batch "
        f"{config.trainer.global_batch}, unless an arm says otherwise; {config.prompts.heldout} held-out prompts, "
        f"evaluate.k={config.evaluate.k}. Every win rate is against the base, whose responses are those of the same "
        "seed.",
        *worth_of_judges(data.last),
    ]
    if hardware:
        gpus = f"{hardware['gpus']} GPUs" if hardware["gpus"] else "no GPU"
        place = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, {gpus}"
        lines.append(f"Its steps took {seconds / 3600:.2f} hours on {place}.")
    return lines + ([study.note] if study.note else [])


def _wins(compared: Sequence[ArmsAtIteration]) -> Grid:
    places = {(arm, one.iteration) for one in compared for arm in one.arms}
    by_place = {(one.iteration, one.judge): one for one in compared}
    order = list(dict.fromkeys(arm for one in compared for arm in one.arms))
    rows = [
        (arm, str(t), *(_win_rate(by_place[t, judge].arms[arm]) for judge in JUDGES))
        for arm, t in sorted(places, key=lambda place: (order.index(place[0]), place[1]))
    ]
    columns = ("arm", "iteration", *(JUDGE_NAMES[judge] for judge in JUDGES))
    return Grid(title="Win rate against the base", columns=columns, rows=tuple(rows))


def _win_rate(rate: Estimate) -> str:
    return f"{interval(rate)} ({rate.n})"


def _apart(compared: Sequence[ArmsAtIteration]) -> Grid:
    rows = [
        (
            f"{c.arm} - {c.than}",
            str(one.iteration),
            JUDGE_NAMES[one.judge],
            interval(c.difference, signed=True),
            f"{c.detectable:.3f}",
            ", ".join(f"{d:+.3f}" for d in c.by_seed),
            {"none": "no difference detectable", "luck": "no more than seeds differ"}.get(c.finding, c.finding),
        )
        for one in compared
        for c in one.comparisons
    ]
    columns = ("arms", "iteration", "judge", "difference", "detectable", "by seed", "found")
    return Grid(title="Differences between arms, paired by prompt", columns=columns, rows=tuple(rows))


def _behaviour(figures: Mapping[tuple[str, int], Mapping[str, float]], base: Mapping[int, Mapping[str, float]]) -> Grid:
    shown = {name: form for name, (_, form) in FIGURES.items() if any(name in one for one in figures.values())}
    start = {("base", 0): mean_of(list(base.values()))} if base else {}
    rows = [
        (arm, str(t), *(format(one[name], form) if name in one else "" for name, form in shown.items()))
        for (arm, t), one in {**start, **figures}.items()
    ]
    columns = ("arm", "iteration", *shown)
    return Grid(title=BEHAVIOUR, columns=columns, rows=tuple(rows))


def _rows(
    compared: Sequence[ArmsAtIteration], figures: Mapping[tuple[str, int], Mapping[str, float]]
) -> list[dict[str, Any]]:
    rows = []
    for one in compared:
        name = JUDGE_NAMES[one.judge]
        for arm, rate in one.arms.items():
            rows.append(_row(arm, one.iteration, f"win rate against the base, {name}", rate.mean, **_spread(rate)))
        for c in one.comparisons:
            extra = {
                **_spread(c.difference),
                "detectable": _null(c.detectable),
                "by_seed": list(c.by_seed),
                "luck": c.luck,
            }
            metric = f"win rate minus that of {c.than}, {name}"
            rows.append(
                _row(c.arm, one.iteration, metric, c.difference.mean, baseline=c.than, finding=c.finding, **extra)
            )
    for (arm, t), found in figures.items():
        rows += [_row(arm, t, metric, value) for metric, value in found.items()]
    return rows


def _row(arm: str, t: int, metric: str, value: float, **more: Any) -> dict[str, Any]:
    unit = "probability" if metric.startswith("win rate") else "as named"
    head = {"case": f"{arm}, iteration {t}", "metric": metric, "value": _null(value), "unit": unit}
    return {**head, "baseline": None, "ratio": None, "aim": None, **more}


def _spread(one: Estimate) -> dict[str, Any]:
    return {"low": _null(one.low), "high": _null(one.high), "n": one.n}


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def write(report: Report, folder: Path, figure: str) -> None:
    """Write report.md and rows.json."""
    parts = [f"# {report.title}", *report.about, "## What it shows"]
    parts += ["\n".join(f"- {line}" for line in [*report.verdicts, *report.limits]), f"![]({figure})"]
    for grid in report.grids:
        rows = [grid.columns, ("---",) * len(grid.columns), *grid.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        parts += [f"## {grid.title}", "\n".join(lines)]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(report.rows, indent=1) + "\n", encoding="utf-8")


def show(report: Report, console: Console) -> None:
    """Print the tables, then what they show."""
    for grid in report.grids:
        table = Table(*grid.columns, title=grid.title, title_justify="left")
        for row in grid.rows:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        console.print(table)
    for line in [*report.about, *report.verdicts, *report.limits]:
        console.print(line.replace("**", ""), markup=False, highlight=False)
