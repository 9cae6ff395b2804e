"""How win rates and preferences of an iteration are spread, before and after the gate: read part by part.

Histograms are added up array by array, so that no column is ever in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparring.pipeline.report.prompts import KEY, after_gate
from sparring.pipeline.runs.run_history import RunHistory
from sparring.stages.annotate import gate
from sparring.stages.annotate.rows import matrix, place
from sparring.stages.step import Input

BINS = 20
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts in equal bins of [low, high]."""

    name: str
    low: float
    high: float
    counts: Sequence[int]

    @property
    def n(self) -> int:
        """Values counted."""
        return sum(self.counts)


def counts_of(values: Array, low: float, high: float) -> NDArray[np.int64]:
    """Count values in BINS equal bins of [low, high]: NaN is of none, those beyond an end by rounding of the last."""
    inside = np.clip(values[~np.isnan(values)], low, high)
    return np.histogram(inside, bins=BINS, range=(low, high))[0]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Histograms of the prompts that have a pair, each prompt once."""

    rates: Histogram
    """p, the win rates of the responses."""
    before: Histogram
    """|P - 1/2| of the pairs of responses i < j that met."""
    after: Histogram | None
    """|P~ - 1/2| of the same, None without a gate."""


def spread_of(arm: RunHistory, t: int) -> Spread | None:
    """Return the histograms of iteration t, None where it has no pairs yet."""
    pairs, made = arm.artifact(t, "pairs"), arm.manifest(t, "calibrate")
    targets = arm.artifact(t, "calibrate") if made and made.summary.get("gate") != "off" else None
    return spread(pairs, targets, made.setting("gate.scope") if made and targets else "") if pairs else None


def spread(pairs: Input, targets: Input | None, scope: str) -> Spread:
    """Add up the histograms of an iteration; `targets` is what the gate made of `pairs`, under `scope`."""
    names = {"win rates": 1.0, "before the gate": 0.5, "after the gate": 0.5}
    counts = np.zeros((len(names), BINS), dtype=np.int64)
    for part in range(pairs.n_parts):
        columns = zip(*_prompts(pairs, targets, part, scope), strict=True)
        for row, values, high in zip(counts, columns, names.values(), strict=False):  # no columns without a prompt
            row += counts_of(np.concatenate(values), 0.0, high)
    rates, before, after = (
        Histogram(name=name, low=0.0, high=high, counts=row.tolist())
        for (name, high), row in zip(names.items(), counts, strict=True)
    )
    return Spread(rates=rates, before=before, after=after if targets else None)


def _prompts(pairs: Input, targets: Input | None, part: int, scope: str) -> Iterator[tuple[Array, Array, Array]]:
    """Yield (p, |P - 1/2|, |P~ - 1/2|) of each prompt of a part; of several pairs of a prompt the first one's gate.

    The distances are of the pairs i < j: (K(K-1)/2,), NaN for those that did not meet.
    """
    gates = {}
    if targets:
        rows = targets.table(part, columns=[*KEY, "gate"]).to_pylist()
        gates = {tuple(row[name] for name in KEY): row["gate"] for row in rows}
    seen = set()
    for row in pairs.table(part, columns=[*KEY, "n", "P", "win_rates"]).to_pylist():
        if row["id"] in seen:
            continue
        seen.add(row["id"])
        shape = (row["n"], row["n"])
        p = matrix(row["P"], shape, "P", place(pairs, part, row["id"]), sparse=True)
        values = gates.get(tuple(row[name] for name in KEY))
        g = None if values is None else np.array(values, dtype=np.float64).reshape(shape)
        before, after = (np.abs(gate.off_diagonal(one) - 0.5) for one in (p, after_gate(p, g, scope, row)))
        yield np.array(row["win_rates"], dtype=np.float64), before, after
