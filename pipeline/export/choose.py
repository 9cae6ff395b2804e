"""Which iteration is exported: the best by the second judge against the base, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sparring.pipeline.report.data import ArmReport
from sparring.pipeline.report.figures import Figure
from sparring.stages.errors import DataError

EQUAL = 1e-9
"""Win rates this close are one."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An iteration and why it is the one."""

    iteration: int
    why: tuple[str, ...]


def choose(arm: ArmReport, wanted: int | None) -> Choice:
    """Return iteration `wanted`, else the best by the second judge; DataError where there is none."""
    run = arm.history.name
    trained = [t for t, steps in arm.history.steps.items() if "train" in steps]
    if not trained:
        raise DataError(f"run {run}: no iteration is trained yet, so there is no policy to export.")
    if wanted is not None and wanted not in trained:
        raise DataError(f"--iter {wanted}: run {run} has no such trained iteration; there are: {_listed(trained)}.")
    judged = ((t, arm.win_rate(t, "second")) for t in trained)
    figures = {t: figure for t, figure in judged if figure and figure.verdict}
    rates = {t: float(figure.value["win_rate"]) for t, figure in figures.items()}
    if wanted is not None:
        return Choice(iteration=wanted, why=tuple(_why_wanted(wanted, figures, rates)))
    if not rates:
        raise DataError(
            f"run {run}: the second judge has no win rate against the base for any trained iteration "
            f"({_listed(trained)}); let the run finish, or choose one: --iter {min(trained)}."
        )
    best = min(t for t in rates if max(rates.values()) - rates[t] <= EQUAL)
    missing = [t for t in trained if t not in rates]
    return Choice(iteration=best, why=tuple(_why_best(best, figures, rates, missing)))


def _why_wanted(wanted: int, figures: Mapping[int, Figure], rates: Mapping[int, float]) -> Iterator[str]:
    if wanted not in rates:
        yield f"iteration {wanted}, as asked for; the second judge has not compared it with the base"
        return
    yield f"iteration {wanted}, as asked for; by the second judge against the base: {figures[wanted].interval}"
    yield from _meaning(figures[wanted])
    better = [t for t in rates if rates[t] - rates[wanted] > EQUAL]
    if better:
        named = ", ".join(f"{t} with {figures[t].interval}" for t in better)
        yield f"by the second judge these have a higher win rate, by point estimates: {named}"


def _why_best(
    best: int, figures: Mapping[int, Figure], rates: Mapping[int, float], missing: list[int]
) -> Iterator[str]:
    among = f"the best of {_listed(rates)}" if len(rates) > 1 else "the only one that is evaluated"
    yield f"iteration {best}, {among} by the second judge against the base: {figures[best].interval}"
    yield from _meaning(figures[best])
    others = [t for t in rates if t != best]
    equal = [t for t in others if abs(rates[best] - rates[t]) <= EQUAL]
    if equal:
        yield f"a tie with {_listed(equal)}, to the last digit: the earliest is taken"
    near = [t for t in others if t not in equal and figures[t].value["high"] >= figures[best].value["low"]]
    if near:
        named = ", ".join(f"{t} with {figures[t].interval}" for t in near)
        yield f"its interval overlaps with those of {named}: that it is the better one is not sure"
    if missing:
        yield f"trained but not evaluated against the base by the second judge, so left out: {_listed(missing)}"


def _meaning(figure: Figure) -> Iterator[str]:
    row = figure.value
    if not row["informative"]:
        yield "not informative: the interval contains 1/2, so the second judge cannot tell it from the base"
    elif row["finding"] == "none":
        yield (
            "no difference from the base detectable: the interval excludes 1/2, but by less than "
            f"{row['detectable']:.3f}, which so many prompts can tell"
        )
    elif row["finding"] == "worse":
        yield "WARNING: the second judge finds it worse than the base"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
