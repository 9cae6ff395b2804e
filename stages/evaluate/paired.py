"""Two policies against each other, prompt by prompt: the difference of their win rates. Pure numpy, float64.

Both win rates are against the same opponent. A difference is taken on each held-out prompt that both have: what makes a
prompt hard for every policy cancels out. Its interval is that of the paired bootstrap over prompts (bootstrap.py): it
says how far another draw of prompts would move the figure, not how far another training, with another seed, would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from sparring.stages.evaluate.bootstrap import ROUNDING, Array, paired_bootstrap

Rates = Mapping[str, float]
"""Prompt -> win rate, or a difference of two."""
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    resamples: int
    confidence: float
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `n` prompts and its interval; NaN without a prompt."""

    mean: float
    low: float
    high: float
    n: int


def difference(policy: Rates, than: Rates) -> dict[str, float]:
    """Return prompt -> the policy's win rate minus the other's, of prompts that both have."""
    return {prompt: rate - than[prompt] for prompt, rate in policy.items() if prompt in than}


def aligned(columns: Sequence[Rates]) -> Array:
    """Return (n, c) float64: a row for each prompt that any column has, sorted by id, NaN where a column lacks it."""
    prompts = sorted(set().union(*columns))
    rows = [[column.get(prompt, math.nan) for column in columns] for prompt in prompts]
    return np.array(rows, dtype=np.float64).reshape(len(prompts), len(columns))


def estimates(columns: Sequence[Rates], settings: Bootstrap) -> list[Estimate]:
    """Return the mean of each column with its interval; every column is resampled with the same prompts."""
    values = aligned(columns)
    means, lows, highs = paired_bootstrap(values, settings.resamples, settings.confidence, settings.seed)
    counts = (~np.isnan(values)).sum(axis=0)
    return [
        Estimate(mean=float(mean), low=float(low), high=float(high), n=int(n))
        for mean, low, high, n in zip(means, lows, highs, counts, strict=True)
    ]


def found(one: Estimate, least: float) -> str:
    """Say what an estimated difference is: `better`, `worse`, `none` or `unknown`.

    none: the interval contains 0, or the difference is no larger than `least`, the minimum detectable effect: of two
    policies that hardly differ, those comparisons whose interval excludes 0 by chance overstate the difference.
    unknown: fewer than two prompts; a single one has an interval without width.
    """
    if one.n < 2 or math.isnan(one.mean):
        return "unknown"
    if (one.low <= ROUNDING and one.high >= -ROUNDING) or abs(one.mean) <= least:
        return "none"
    return "better" if one.mean > 0 else "worse"


def detectable(differences: Sequence[float], confidence: float, power: float = POWER) -> float:
    """Return the minimum detectable effect: of a true mean this far from 0 the interval excludes 0 with `power`.

    (z(1/2 + confidence/2) + z(power)) * s / sqrt(n), s the standard deviation of the n differences (n - 1 below), z the
    normal quantile: (1.96 + 0.84) * SE at 95% and 80%. NaN for fewer than two.
    """
    if len(differences) < 2:
        return math.nan
    z = NormalDist().inv_cdf
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return (z(0.5 + confidence / 2) + z(power)) * error


def detectable_of(low: float, high: float, confidence: float, power: float = POWER) -> float:
    """Return the minimum detectable effect of an interval alone, whose half width is z(1/2 + confidence/2) * SE."""
    z = NormalDist().inv_cdf
    return (1 + z(power) / z(0.5 + confidence / 2)) * (high - low) / 2
