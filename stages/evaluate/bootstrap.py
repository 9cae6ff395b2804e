"""Held-out win rates, differences of two of them and log-ratios, each with its interval. Pure numpy, float64.

A prompt's win rate is the mean of P[i, j] = sigmoid((logits[i, j] - swapped[i, j]) / 2) over the responses i of the new
policy and j of the old one; a policy's is the mean over prompts. The interval is a percentile bootstrap over prompts,
paired: every comparison is resampled with the same prompts, so that differences between them are comparable too.

Two policies are compared by the difference of their win rates against one opponent, on each held-out prompt that both
have: what makes a prompt hard for every policy cancels out. Its interval is how far another draw of prompts would
move the figure, not how far another training, with another seed, would.

A log-ratio of a response y to a prompt x is d = log pi(y|x) - log pi'(y|x), in nats, summed over its tokens. The mean
of d over responses that were sampled from pi itself (T = 1, top_p = 1, min_p = 0) estimates KL(pi || pi') without bias;
the estimate may be negative, KL never is. Of responses that were sampled otherwise it is the mean log-ratio under that
sampling distribution, which is no KL: at T < 1 the policy's own tail is left out. The interval draws prompts, with all
their responses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rates = Mapping[str, float]
"""Prompt -> win rate, or a difference of two."""
LogProbs = Mapping[tuple[str, int], float]
"""(prompt, response) -> log-prob in nats."""

ROUNDING = 1e-9
"""Win rates this close to 1/2 are 1/2: a policy against its own responses is no better by a last bit."""
BLOCK = 256
"""Resamples held in memory at once."""
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


def prompt_win_rate(logits: Array, swapped: Array) -> float:
    """Mean over all entries of sigmoid((logits - swapped) / 2): how often left wins on one prompt."""
    return float((0.5 * (1.0 + np.tanh(0.25 * (logits - swapped)))).mean())


def paired_bootstrap(
    values: Array, resamples: int, confidence: float, seed: int, weights: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return mean, low and high (c,) of each column of `values`.

    values: (n, c) float64, one row per prompt, one column per comparison; NaN where a comparison leaves a
    prompt out. weights: (n, c), how much each value counts in its column's mean; None: all the same. low, high:
    the (1 - confidence) / 2 quantiles, from below and above, of the column's mean over `resamples` draws of n
    prompts with replacement. NaN for a column without a value.
    """
    n, c = values.shape
    if not n:
        return np.full(c, np.nan), np.full(c, np.nan), np.full(c, np.nan)
    present = np.where(np.isnan(values), 0.0, 1.0 if weights is None else weights)
    filled = np.where(np.isnan(values), 0.0, values * present)

    def mean(sums: Array, counts: Array) -> Array:
        return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)

    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, BLOCK):
        counts = rng.multinomial(n, np.full(n, 1.0 / n), size=min(BLOCK, resamples - start)).astype(np.float64)
        means.append(mean(counts @ filled, counts @ present))
    tail = (1.0 - confidence) / 2.0
    columns = [column[~np.isnan(column)] for column in np.concatenate(means).T]  # draws that hold one of its prompts
    low, high = (
        np.array([np.quantile(column, q) if column.size else np.nan for column in columns]) for q in (tail, 1.0 - tail)
    )
    return mean(filled.sum(axis=0), present.sum(axis=0)), low, high


def informative(low: float, high: float) -> bool:
    """Whether the interval excludes 1/2."""
    return low > 0.5 + ROUNDING or high < 0.5 - ROUNDING


def alarm(oracle_low: float, second_win_rate: float) -> bool:
    """The oracle's interval lies above 1/2 while the second judge's win rate lies below."""
    return oracle_low > 0.5 + ROUNDING and second_win_rate < 0.5 - ROUNDING


def difference(policy: Rates, baseline: Rates) -> dict[str, float]:
    """Return prompt -> the policy's win rate minus the baseline's, of prompts that both have."""
    return {prompt: rate - baseline[prompt] for prompt, rate in policy.items() if prompt in baseline}


def aligned(columns: Sequence[Rates]) -> Array:
    """Return (n, c) float64: a row for each prompt that any column has, sorted by id, NaN where a column lacks it."""
    prompts = sorted(set().union(*columns))
    rows = [[column.get(prompt, math.nan) for column in columns] for prompt in prompts]
    return np.array(rows, dtype=np.float64).reshape(len(prompts), len(columns))


def estimates(columns: Sequence[Rates], settings: Bootstrap) -> list[Estimate]:
    """Return the mean of each column with its interval; every column is resampled with the same prompts."""
    return _estimates(aligned(columns), settings)


def _estimates(values: Array, settings: Bootstrap, weights: Array | None = None) -> list[Estimate]:
    intervals = paired_bootstrap(values, settings.resamples, settings.confidence, settings.seed, weights)
    counts = (~np.isnan(values)).sum(axis=0)
    return [
        Estimate(mean=float(mean), low=float(low), high=float(high), n=int(n))
        for mean, low, high, n in zip(*intervals, counts, strict=True)
    ]


def outcome(one: Estimate, least: float) -> str:
    """Return what an estimated difference is: `better`, `worse`, `none` or `unknown`.

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


def log_ratios(own: LogProbs, others: Sequence[LogProbs], settings: Bootstrap) -> list[Estimate]:
    """Return the mean of d over responses to each of the other policies, all resampled with the same prompts.

    A response that one of two policies could not score is left out of their figure; n counts prompts.
    """
    means, counts = [], []
    for other in others:
        by_prompt: dict[str, list[float]] = {}
        for place, value in own.items():
            if place in other:
                by_prompt.setdefault(place[0], []).append(value - other[place])
        means.append({prompt: float(np.mean(ratios)) for prompt, ratios in by_prompt.items()})
        counts.append({prompt: float(len(ratios)) for prompt, ratios in by_prompt.items()})
    return _estimates(aligned(means), settings, np.nan_to_num(aligned(counts)))


def tempered(sampling: Mapping[str, object]) -> bool:
    """Return whether responses were drawn from another distribution than the policy's own."""
    own = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}
    return any(sampling.get(name, value) != value for name, value in own.items())
