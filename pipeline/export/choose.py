"""Which iteration is exported: the best by the second judge against the base, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sparring.pipeline.report.table import Steps, compared, interval
from sparring.stages.errors import DataError

EQUAL = 1e-9
"""Win rates this close are one."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An iteration and why it is the one."""

    iteration: int
    why: tuple[str, ...]


def choose(run: str, steps: Mapping[int, Steps], wanted: int | None) -> Choice:
    """Return iteration `wanted`, else the best by the second judge; DataError where it cannot be told."""
    trained = {t: found for t, found in steps.items() if "train" in found}
    if not trained:
        raise DataError(f"run {run}: no iteration is trained yet, so there is no policy to export.")
    if wanted is not None and wanted not in trained:
        raise DataError(f"--iter {wanted}: run {run} has no such trained iteration; there are: {_listed(trained)}.")
    rates = {t: row for t, found in trained.items() if (row := by_second_judge(found))}
    if wanted is not None:
        return Choice(iteration=wanted, why=tuple(_asked(wanted, rates)))
    if not rates:
        raise DataError(
            f"run {run}: the second judge has no win rate against the base for any trained iteration "
            f"({_listed(trained)}); let the run finish, or choose one: --iter {min(trained)}."
        )
    best = min(rates, key=lambda t: (-rates[t]["win_rate"], t))
    best = min(t for t in rates if rates[best]["win_rate"] - rates[t]["win_rate"] <= EQUAL)
    return Choice(iteration=best, why=tuple(_best(best, rates, sorted(trained.keys() - rates.keys()))))


def by_second_judge(steps: Steps) -> dict[str, Any] | None:
    """Return the comparison with the base by the second judge, None without one or without prompts."""
    row = compared(steps, "second", "base")
    return row if row and row["win_rate"] is not None else None


def _asked(wanted: int, rates: Mapping[int, dict[str, Any]]) -> Iterator[str]:
    if wanted not in rates:
        yield f"iteration {wanted}, as asked for; the second judge has not compared it with the base"
        return
    yield f"iteration {wanted}, as asked for; by the second judge against the base: {_figure(rates[wanted])}"
    yield from _meaning(rates[wanted])
    better = [t for t in rates if rates[t]["win_rate"] - rates[wanted]["win_rate"] > EQUAL]
    if better:
        named = ", ".join(f"{t} with {_figure(rates[t])}" for t in better)
        yield f"by the second judge these have a higher win rate, by point estimates: {named}"


def _best(best: int, rates: Mapping[int, dict[str, Any]], missing: list[int]) -> Iterator[str]:
    among = f"the best of {_listed(rates)}" if len(rates) > 1 else "the only one that is evaluated"
    yield f"iteration {best}, {among} by the second judge against the base: {_figure(rates[best])}"
    yield from _meaning(rates[best])
    others = [t for t in rates if t != best]
    equal = [t for t in others if abs(rates[best]["win_rate"] - rates[t]["win_rate"]) <= EQUAL]
    if equal:
        yield f"a tie with {_listed(equal)}, to the last digit: the earliest is taken"
    near = [t for t in others if t not in equal and rates[t]["high"] >= rates[best]["low"]]
    if near:
        named = ", ".join(f"{t} with {_figure(rates[t])}" for t in near)
        yield f"its interval overlaps with those of {named}: that it is the better one is not sure"
    if missing:
        yield f"trained but not evaluated against the base by the second judge, so left out: {_listed(missing)}"


def _meaning(row: Mapping[str, Any]) -> Iterator[str]:
    if not row["informative"]:
        yield "not informative: the interval contains 1/2, so the second judge cannot tell it from the base"
    elif row["finding"] == "none":
        yield (
            "no difference from the base detectable: the interval excludes 1/2, but by less than "
            f"{row['detectable']:.3f}, which so many prompts can tell"
        )
    elif row["finding"] == "worse":
        yield "WARNING: the second judge finds it worse than the base"


def _figure(row: dict[str, Any]) -> str:
    return interval(row)


def _listed(numbers: Mapping[int, Any] | list[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
