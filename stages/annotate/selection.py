"""Which pairs (chosen, rejected) of a prompt's responses are trained on, by their win rates (K,). Pure numpy, float64.

extremes        the best and the worst, the first index among equals: SPPO's
all_pairs       every two responses whose values differ, the better one chosen: K(K-1)/2 at most
top_vs_random   the best, and one drawn from all that are worse

Values closer than TIE are equal. What has no pair is a tie: two responses whose values are equal, or a prompt all of
whose are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from sparring.stages.annotate.winrate import TIE

Array = NDArray[np.float64]
Pair = tuple[int, int]
"""(chosen, rejected)"""


def generator(purpose: str, seed: int, row_id: str) -> np.random.Generator:
    """What draws for one prompt: the same in every shard and run."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{row_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def first_half(anchors: Sequence[int], row_id: str) -> list[int]:
    """Return the half of a prompt's anchors, the smaller one, by which its pairs are selected under `cross_fit`.

    Drawn by the prompt alone, so that the steps `pairs` and `calibrate` draw the same; the anchors are drawn by seed.
    """
    drawn = generator("halves", 0, row_id).choice(sorted(anchors), len(anchors) // 2, replace=False)
    return sorted(int(one) for one in drawn)


def candidates(by: str, k: int) -> int:
    """How many pairs there are without ties."""
    return k * (k - 1) // 2 if by == "all_pairs" else 1


def select(values: Array, by: str, row_id: str, seed: int) -> list[Pair]:
    """The pairs of a prompt; `row_id` and `seed` draw for top_vs_random."""
    if by == "extremes":
        found = extremes(values)
        return [found] if found else []
    if by == "all_pairs":
        return all_pairs(values)
    if by == "top_vs_random":
        return top_vs_random(values, generator(by, seed, row_id))
    raise ValueError(f"selection {by!r} is not extremes, all_pairs or top_vs_random")


def extremes(values: Array) -> Pair | None:
    """(argmax, argmin), the first index among equals; None when all values are tied."""
    high, low = values.max(), values.min()
    slack = _slack(values)
    if high - low <= slack:
        return None
    return int(np.argmax(values >= high - slack)), int(np.argmax(values <= low + slack))


def all_pairs(values: Array) -> list[Pair]:
    """Every i < j whose values differ, the one with the larger value first."""
    slack = _slack(values)
    both = [(i, j) for i, j in combinations(range(len(values)), 2) if abs(values[i] - values[j]) > slack]
    return [(i, j) if values[i] > values[j] else (j, i) for i, j in both]


def top_vs_random(values: Array, rng: np.random.Generator) -> list[Pair]:
    """The first of the best, and one of the worse ones, all equally likely; none when all values are tied."""
    worse = np.flatnonzero(values < values.max() - _slack(values))
    return [(int(np.argmax(values >= values.max() - _slack(values))), int(rng.choice(worse)))] if len(worse) else []


def _slack(values: Array) -> float:
    return TIE * max(1.0, float(np.abs(values).max()))
