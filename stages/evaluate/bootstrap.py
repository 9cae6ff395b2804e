"""Held-out win rates and how sure we are of them. Pure numpy, float64.

A prompt's win rate is the mean of P[i, j] = sigmoid((logits[i, j] - swapped[i, j]) / 2) over the responses i
of the new policy and j of the old one; a policy's is the mean over prompts. The interval is a percentile
bootstrap over prompts, paired: every comparison is resampled with the same prompts, so that differences
between them are comparable too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDING = 1e-9
"""Win rates this close to 1/2 are 1/2: a policy against its own responses is no better by a last bit."""
BLOCK = 256
"""Resamples held in memory at once."""


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
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, BLOCK):
        counts = rng.multinomial(n, np.full(n, 1.0 / n), size=min(BLOCK, resamples - start)).astype(np.float64)
        means.append(_mean(counts @ filled, counts @ present))
    tail = (1.0 - confidence) / 2.0
    low, high = (_quantile(np.concatenate(means), q) for q in (tail, 1.0 - tail))
    return _mean(filled.sum(axis=0), present.sum(axis=0)), low, high


def informative(low: float, high: float) -> bool:
    """Whether the interval excludes 1/2."""
    return low > 0.5 + ROUNDING or high < 0.5 - ROUNDING


def alarm(oracle_low: float, second_win_rate: float) -> bool:
    """The oracle says better beyond doubt (its interval lies above 1/2) while the second judge says worse."""
    return oracle_low > 0.5 + ROUNDING and second_win_rate < 0.5 - ROUNDING


def _mean(sums: Array, counts: Array) -> Array:
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)


def _quantile(means: Array, q: float) -> Array:
    """Quantile of each column over the draws that hold one of its prompts."""
    columns = (column[~np.isnan(column)] for column in means.T)
    return np.array([np.quantile(column, q) if column.size else np.nan for column in columns])
