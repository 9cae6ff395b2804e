"""How win rates and preferences of an iteration are spread, before and after the gate: read part by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparring.pipeline.report.html.bins import Counts, Tally
from sparring.stages.annotate import gate
from sparring.stages.annotate.rows import matrix, place
from sparring.stages.step import Input

Array = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Histograms of the prompts that have a pair, each prompt once."""

    rates: Counts
    """p, the win rates of the responses."""
    before: Counts
    """|P - 1/2| of the pairs of responses i < j that met."""
    after: Counts | None
    """|P~ - 1/2| of the same, None without a gate."""


def spread(pairs: Input, targets: Input | None, scope: str) -> Spread:
    """Add up the histograms of an iteration; `targets` is what the gate made of `pairs`, under `scope`."""
    rates, before, after = Tally(0.0, 1.0), Tally(0.0, 0.5), Tally(0.0, 0.5)
    for part in range(pairs.n_parts):
        found = list(_prompts(pairs, targets, part, scope))
        if found:
            rates.add(np.concatenate([rates_ for rates_, _, _ in found]))
            before.add(np.concatenate([p for _, p, _ in found]))
        if found and targets:
            after.add(np.concatenate([p for _, _, p in found]))
    return Spread(
        rates=rates.named("win rates"),
        before=before.named("before the gate"),
        after=after.named("after the gate") if targets else None,
    )


def _prompts(pairs: Input, targets: Input | None, part: int, scope: str) -> Iterator[tuple[Array, Array, Array]]:
    """Yield (p, |P - 1/2|, |P~ - 1/2|) of each prompt of a part; of several pairs of a prompt the first one's gate."""
    gates = _gates(targets, part) if targets else {}
    seen = set()
    for row in pairs.table(part, columns=["id", "n", "P", "win_rates", "chosen", "rejected"]).to_pylist():
        if row["id"] in seen:
            continue
        seen.add(row["id"])
        p = matrix(row["P"], (row["n"], row["n"]), "P", place(pairs, part, row["id"]), sparse=True)
        after = gated(p, gates.get((row["id"], row["chosen"], row["rejected"])), scope, row["chosen"], row["rejected"])
        yield np.array(row["win_rates"], dtype=np.float64), pull(p), pull(after)


def _gates(targets: Input, part: int) -> dict[tuple[str, int, int], list[float]]:
    rows = targets.table(part, columns=["id", "chosen", "rejected", "gate"]).to_pylist()
    return {(row["id"], row["chosen"], row["rejected"]): row["gate"] for row in rows}


def gated(p: Array, g: list[float] | None, scope: str, chosen: int, rejected: int) -> Array:
    """Return P~ (K, K) from P and the row-major g of a prompt; P itself without g."""
    if g is None:
        return p
    return gate.gated(p, gate.spread(np.array(g, dtype=np.float64).reshape(p.shape), scope, chosen, rejected))


def pull(p: Array) -> Array:
    """Return |P - 1/2| of the pairs i < j: (K(K-1)/2,), NaN for those that did not meet."""
    return np.abs(gate.off_diagonal(p) - 0.5)
