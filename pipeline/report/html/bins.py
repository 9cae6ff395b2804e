"""Histograms that are added up array by array, so that no column is ever held whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 20


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A histogram: counts in equal bins of [low, high]."""

    name: str
    low: float
    high: float
    counts: Sequence[int]

    @property
    def n(self) -> int:
        """Values counted."""
        return sum(self.counts)


class Tally:
    """Counts values in BINS equal bins of [low, high]; NaN is of none."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.counts: NDArray[np.int64] = np.zeros(BINS, dtype=np.int64)

    def add(self, values: NDArray[np.float64]) -> None:
        """Count more values; those beyond an end by rounding alone are of the last bin there."""
        inside = np.clip(values[~np.isnan(values)], self.low, self.high)
        self.counts += np.histogram(inside, bins=BINS, range=(self.low, self.high))[0]

    def named(self, name: str) -> Counts:
        """Return what was counted."""
        return Counts(name=name, low=self.low, high=self.high, counts=self.counts.tolist())
