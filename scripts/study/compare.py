"""Arms of a study against each other, prompt by prompt. Pure numpy, float64.

An arm's win rate on a held-out prompt is the mean over its seeds of P(its policy beats the base); its win rate is the
mean over prompts. A difference of two arms is taken on each prompt, over the seeds and prompts that both have. The
intervals are those of one paired bootstrap over prompts (stages/evaluate/bootstrap.py): they say how far another draw
of prompts would move the figure, not another training. Two trainings that differ in nothing but the seed differ too, so
a difference counts only if it is larger than that as well (`seed_sd`) and has one sign under every seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np

from stages.evaluate.bootstrap import ROUNDING, Array, paired_bootstrap

Rates = Mapping[str, float]
"""Prompt -> win rate."""
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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The win rate of `arm` minus that of `than`."""

    arm: str
    than: str
    difference: Estimate
    detectable: float
    by_seed: tuple[float, ...]
    luck: float
    """What seeds alone make of a difference, at the same confidence; 0 where one seed says nothing of it."""

    @property
    def finding(self) -> str:
        """`better`, `worse`, `luck` (the interval excludes 0, but seeds alone could do that), `none` or `unknown`."""
        mean, low, high = self.difference.mean, self.difference.low, self.difference.high
        if math.isnan(mean):
            return "unknown"
        if low <= ROUNDING and high >= -ROUNDING:
            return "none"
        one_sign = min(self.by_seed) > 0 or max(self.by_seed) < 0
        if not one_sign or abs(mean) <= self.luck:
            return "luck"
        return "better" if mean > 0 else "worse"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """All arms at one iteration, by one judge."""

    iteration: int
    judge: str
    arms: Mapping[str, Estimate]
    """Win rates against the base."""
    comparisons: tuple[Comparison, ...]
    seed_sd: float | None
    """See the function."""


def judged(
    iteration: int,
    judge: str,
    rates: Mapping[str, Mapping[int, Rates]],
    against: Sequence[tuple[str, str]],
    settings: Bootstrap,
) -> Judged:
    """Estimate the win rates of all arms and the differences of the pairs `against`, with the same resamples.

    rates: arm -> seed -> prompt -> P(the arm's policy beats the base).
    """
    common = {pair: sorted(rates[pair[0]].keys() & rates[pair[1]].keys()) for pair in against}
    by_seed = {
        pair: [difference(rates[pair[0]][seed], rates[pair[1]][seed]) for seed in seeds]
        for pair, seeds in common.items()
    }
    apart = {pair: over_seeds(found) for pair, found in by_seed.items()}
    values = aligned([over_seeds(list(seeds.values())) for seeds in rates.values()] + list(apart.values()))
    means, lows, highs = paired_bootstrap(values, settings.resamples, settings.confidence, settings.seed)
    counts = (~np.isnan(values)).sum(axis=0)
    deviation = seed_sd([[_mean(one) for one in seeds.values()] for seeds in rates.values()])
    found = [
        Estimate(mean=float(m), low=float(low), high=float(high), n=int(n))
        for m, low, high, n in zip(means, lows, highs, counts, strict=True)
    ]
    return Judged(
        iteration=iteration,
        judge=judge,
        arms=dict(zip(rates, found, strict=False)),
        comparisons=tuple(
            Comparison(
                arm=pair[0],
                than=pair[1],
                difference=estimate,
                detectable=detectable(list(apart[pair].values()), settings.confidence),
                by_seed=tuple(_mean(one) for one in by_seed[pair]),
                luck=luck(deviation, len(common[pair]), settings.confidence),
            )
            for pair, estimate in zip(against, found[len(rates) :], strict=True)
        ),
        seed_sd=deviation,
    )


def over_seeds(rates: Sequence[Rates]) -> dict[str, float]:
    """Return prompt -> mean over the seeds, of prompts that every seed has."""
    prompts = set.intersection(*(set(one) for one in rates)) if rates else set()
    return {prompt: fmean(one[prompt] for one in rates) for prompt in sorted(prompts)}


def difference(arm: Rates, than: Rates) -> dict[str, float]:
    """Return prompt -> arm's win rate minus the other's, of prompts that both have."""
    return {prompt: rate - than[prompt] for prompt, rate in arm.items() if prompt in than}


def aligned(columns: Sequence[Rates]) -> Array:
    """Return (n, c) float64: a row for each prompt that any column has, sorted by id, NaN where a column lacks it."""
    prompts = sorted(set().union(*columns))
    rows = [[column.get(prompt, math.nan) for column in columns] for prompt in prompts]
    return np.array(rows, dtype=np.float64).reshape(len(prompts), len(columns))


def detectable(differences: Sequence[float], confidence: float, power: float = POWER) -> float:
    """Return the minimum detectable effect: a true mean this far from 0 is found with probability `power`.

    (z(1/2 + confidence/2) + z(power)) * s / sqrt(n), s the standard deviation of the n differences (n - 1 below), z the
    normal quantile: (1.96 + 0.84) * SE at 95% and 80%. NaN for fewer than two.
    """
    if len(differences) < 2:
        return math.nan
    z = NormalDist().inv_cdf
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return (z(0.5 + confidence / 2) + z(power)) * error


def seed_sd(by_arm: Sequence[Sequence[float]]) -> float | None:
    """Return the standard deviation of an arm's win rate over its seeds, pooled over arms; None for one seed each.

    sqrt(sum over arms and seeds of (rate - the arm's mean)^2 / sum over arms of (seeds - 1)).
    """
    freedom = sum(len(rates) - 1 for rates in by_arm)
    if not freedom:
        return None
    return math.sqrt(sum((rate - fmean(rates)) ** 2 for rates in by_arm for rate in rates) / freedom)


def luck(deviation: float | None, seeds: int, confidence: float) -> float:
    """Return how far apart the means of two equal arms over `seeds` seeds are, at most, with probability `confidence`.

    z(1/2 + confidence/2) * deviation * sqrt(2 / seeds); 0 where the deviation is not known.
    """
    if deviation is None or not seeds:
        return 0.0
    return NormalDist().inv_cdf(0.5 + confidence / 2) * deviation * math.sqrt(2 / seeds)


def _mean(rates: Rates) -> float:
    return fmean(rates.values()) if rates else math.nan
