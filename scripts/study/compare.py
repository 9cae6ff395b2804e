"""Arms of a study against each other, prompt by prompt and seed by seed. Pure, float64.

An arm's win rate on a held-out prompt is the mean over its seeds of P(its policy beats the base); its win rate is the
mean over prompts. A difference of two arms is taken on each prompt (stages/evaluate/bootstrap.py), over the seeds and
prompts that both have. Its interval is over prompts. Two trainings that differ in nothing but the seed differ too, so a
difference counts only if it is larger than that as well (`seed_sd`) and has one sign under every seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from sparring.stages.evaluate.bootstrap import Bootstrap, Estimate, Rates, detectable, difference, estimates, outcome


@dataclass(frozen=True, kw_only=True)
class ArmDifference:
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
        """`better`, `worse`, `luck` (different, but seeds alone could do that), `none` or `unknown`."""
        finding = outcome(self.difference, self.detectable)
        if finding in ("better", "worse"):
            one_sign = min(self.by_seed) > 0 or max(self.by_seed) < 0
            if not one_sign or abs(self.difference.mean) <= self.luck:
                return "luck"
        return finding


@dataclass(frozen=True, kw_only=True)
class ArmsAtIteration:
    """All arms at one iteration, by one judge."""

    iteration: int
    judge: str
    arms: Mapping[str, Estimate]
    """Win rates against the base."""
    comparisons: tuple[ArmDifference, ...]
    seed_sd: float | None
    """See the function."""


def judged(
    iteration: int,
    judge: str,
    rates: Mapping[str, Mapping[int, Rates]],
    against: Sequence[tuple[str, str]],
    settings: Bootstrap,
) -> ArmsAtIteration:
    """Estimate the win rates of all arms and the differences of the pairs `against`, with the same resamples.

    rates: arm -> seed -> prompt -> P(the arm's policy beats the base).
    """
    common = {pair: sorted(rates[pair[0]].keys() & rates[pair[1]].keys()) for pair in against}
    by_seed = {
        pair: [difference(rates[pair[0]][seed], rates[pair[1]][seed]) for seed in seeds]
        for pair, seeds in common.items()
    }
    differences = {pair: over_seeds(seeds) for pair, seeds in by_seed.items()}
    every = estimates(
        [over_seeds(list(seeds.values())) for seeds in rates.values()] + list(differences.values()), settings
    )
    deviation = seed_sd([[_mean(one) for one in seeds.values()] for seeds in rates.values()])
    return ArmsAtIteration(
        iteration=iteration,
        judge=judge,
        arms=dict(zip(rates, every, strict=False)),
        comparisons=tuple(
            ArmDifference(
                arm=pair[0],
                than=pair[1],
                difference=estimate,
                detectable=detectable(list(differences[pair].values()), settings.confidence),
                by_seed=tuple(_mean(one) for one in by_seed[pair]),
                luck=luck(deviation, len(common[pair]), settings.confidence),
            )
            for pair, estimate in zip(against, every[len(rates) :], strict=True)
        ),
        seed_sd=deviation,
    )


def over_seeds(rates: Sequence[Rates]) -> dict[str, float]:
    """Return prompt -> mean over the seeds, of prompts that every seed has."""
    prompts = set.intersection(*(set(one) for one in rates)) if rates else set()
    return {prompt: fmean(one[prompt] for one in rates) for prompt in sorted(prompts)}


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
