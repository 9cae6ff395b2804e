"""The prompts of an iteration that the report shows: those judged most clearly, and some drawn by their ids.

Two passes over the parts, one part in memory at a time: the first chooses, the second reads what was chosen.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparring.pipeline.report.html.spread import gated
from sparring.pipeline.report.inspect import Iteration
from sparring.pipeline.run_history import RunHistory
from sparring.stages.annotate.rows import matrix
from sparring.stages.annotate.winrate import win_rates
from sparring.stages.step import Input

WIDEST, DRAWN = 20, 20
"""Prompts of an iteration with the largest |P - 1/2|, and others drawn by the hash of their ids."""
KEPT = "pair"
"""The reason of a prompt that has one."""
Array = NDArray[np.float64]
Row = dict[str, Any]
Place = tuple[int, str]
"""(part, id)."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt with what became of it."""

    id: str
    messages: Sequence[Row]
    responses: Sequence[Row]
    p: Array | None
    """P (K, K), None where it was not judged."""
    rates: Array | None
    gated: Array | None
    """P~ (K, K), None without a gate."""
    pairs: Sequence[Row]
    """Rows of `pairs` with, where they were calibrated, what `calibrate` says of them."""
    reason: str
    """`pair`, or why it has none: `tie`, `capped`, …; '' where that is not known."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The prompts that are shown, of how many."""

    prompts: Sequence[Prompt]
    of: int


def choose(samples: Input, pairs: Input | None) -> tuple[list[Place], int]:
    """Return the places of the prompts that are shown, widest first, and the number of all prompts."""
    widest: list[tuple[float, str, int]] = []
    drawn: list[tuple[int, str, int]] = []
    every = 0
    for part in range(samples.n_parts):
        ids = samples.table(part, columns=["id"])["id"].to_pylist()
        every += len(ids)
        drawn = heapq.nsmallest(WIDEST + DRAWN, [*drawn, *((_hash(i), i, part) for i in ids)])
        if pairs and part < pairs.n_parts:
            widest = heapq.nlargest(
                WIDEST, [*widest, *((reach, i, part) for i, reach in _reaches(pairs, part).items())]
            )
    first = [(part, i) for _, i, part in widest]
    others = [(part, i) for _, i, part in drawn if (part, i) not in first]
    return first + others[:DRAWN], every


def _hash(row_id: str) -> int:
    return int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8], "big")


def _reaches(pairs: Input, part: int) -> dict[str, float]:
    """Return id -> max |P - 1/2| of a part."""
    rows = pairs.table(part, columns=["id", "P"]).to_pylist()
    return {row["id"]: max(abs(value - 0.5) for value in row["P"] if value is not None) for row in rows}


def read(arm: RunHistory, t: int) -> Chosen | None:
    """Return the prompts of iteration t that are shown, None where nothing is sampled."""
    samples, pairs, targets = (arm.opened(t, label) for label in ("sample", "pairs", "calibrate"))
    if samples is None:
        return None
    places, every = choose(samples, pairs)
    iteration = Iteration(history=arm, number=t)
    scope = arm.every[t]["calibrate"].setting("gate.scope", "") if targets else ""
    found = {}
    for part in sorted({part for part, _ in places}):
        wanted = [row_id for other, row_id in places if other == part]
        made = _made(pairs, targets, part, wanted)
        for row in _rows(samples, part, wanted):
            found[part, row["id"]] = _prompt(row, made.get(row["id"], []), iteration, part, scope)
    return Chosen(prompts=[found[place] for place in places], of=every)


def _rows(source: Input | None, part: int, wanted: Sequence[str]) -> Iterator[Row]:
    if source and part < source.n_parts:
        table = source.table(part)
        yield from table.filter(pc.is_in(table["id"], value_set=pc.cast(list(wanted), "string"))).to_pylist()


def _made(pairs: Input | None, targets: Input | None, part: int, wanted: Sequence[str]) -> dict[str, list[Row]]:
    """Return id -> its pairs, each with its targets."""
    key = ("id", "chosen", "rejected")
    calibrated = {tuple(row[name] for name in key): row for row in _rows(targets, part, wanted)}
    made: dict[str, list[Row]] = {}
    for row in _rows(pairs, part, wanted):
        made.setdefault(row["id"], []).append({**row, **calibrated.get(tuple(row[name] for name in key), {})})
    return made


def _prompt(row: Row, made: list[Row], iteration: Iteration, part: int, scope: str) -> Prompt:
    if not made:
        return _unpaired(row, iteration, part)
    k, first = len(row["responses"]), made[0]
    p = matrix(first["P"], (k, k), "P", "report", sparse=True)
    g = first.get("gate")
    return Prompt(
        id=row["id"],
        messages=row["messages"],
        responses=row["responses"],
        p=p,
        rates=np.array(first["win_rates"]),
        gated=gated(p, g, scope, first["chosen"], first["rejected"]) if g and any(g) else None,
        pairs=made,
        reason=KEPT,
    )


def _unpaired(row: Row, iteration: Iteration, part: int) -> Prompt:
    judged = iteration.judged(part, row["id"])
    return Prompt(
        id=row["id"],
        messages=row["messages"],
        responses=row["responses"],
        p=judged.preference if judged else None,
        rates=win_rates(judged.preference) if judged else None,
        gated=None,
        pairs=(),
        reason=", ".join(sorted(judged.dropped)) if judged else "",
    )
