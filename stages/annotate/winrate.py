"""From raw oracle logits to preferences, win rates and a pair of responses. Pure numpy, float64.

M: (K, K) float64, M[i, j] = raw logit of the ordered pair, i shown first, j second; > 0 means i is better.
P: (K, K) float64, P[i, j] = probability that i beats j; P + P^T = 1 exactly, P[i, i] = 1/2.
p: (K,) float64, win rate against the policy itself, p_i = (1/K) sum_j P[i, j], self included.

`aggregate_*` is the published recipe (official compute_prob.py): it doubles the logit (K = 2: .668 becomes
.802) and erases cycles (a three-cycle of .88 becomes .50). The matrix is the default, since a preference may
be intransitive.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

TIE = 1e-12
"""Win rates closer than this are equal: they differ by the rounding of a sum, not by a preference."""


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def debiased_logits(logits: Array, swapped: Array) -> Array:
    """L = (logits - swapped) / 2, which removes what a response gains from being shown first.

    logits[i, j]: left i shown first; swapped[i, j]: right j shown first. Both > 0 when the first shown is
    better.
    """
    return 0.5 * (logits - swapped)


def preference_matrix(logits: Array) -> Array:
    """P[i, j] = sigmoid((M[i, j] - M[j, i]) / 2) for i < j, mirrored as P[j, i] = 1 - P[i, j]."""
    return _mirrored(sigmoid(debiased_logits(logits, logits.T)))


def aggregate_scores(logits: Array) -> Array:
    """Published score of each response: s_i = mean_j (M[i, j] - M[j, i]), self included (0)."""
    return (logits - logits.T).mean(axis=1)


def aggregate_matrix(logits: Array) -> Array:
    """P[i, j] = sigmoid(s_i - s_j) for i < j, mirrored; transitive whatever the oracle said."""
    scores = aggregate_scores(logits)
    return _mirrored(sigmoid(scores[:, None] - scores[None, :]))


def win_rates(preference: Array) -> Array:
    """p_i = (1/K) sum_j P[i, j]; their sum is K/2."""
    return np.ascontiguousarray(preference).mean(axis=1)


def extremes(values: Array) -> tuple[int, int] | None:
    """Return (argmax, argmin), the first index among equals; None when all values are tied."""
    high, low = values.max(), values.min()
    slack = TIE * max(1.0, abs(high), abs(low))
    if high - low <= slack:
        return None
    return int(np.argmax(values >= high - slack)), int(np.argmax(values <= low + slack))


def loses_head_to_head(preference: Array, chosen: int, rejected: int) -> bool:
    """Whether the chosen response loses its direct duel with the rejected one: P < 1/2."""
    return bool(preference[chosen, rejected] < 0.5)


def cycles(preference: Array) -> tuple[int, int]:
    """Return (three-cycles, triples): unordered triples with P_ij, P_jk, P_ki all > 1/2 one way round."""
    beats = (preference > 0.5).astype(np.int64)
    k = len(beats)
    return int(np.trace(beats @ beats @ beats)) // 3, k * (k - 1) * (k - 2) // 6


def position_disagreement(logits: Array, swapped: Array) -> Mask:
    """Pairs whose winner changes with the order: both logits favour the first shown, or both the second."""
    return np.sign(logits) * np.sign(swapped) > 0


def ties(logits: Array, swapped: Array) -> Mask:
    """Pairs without a preference: the debiased logit is 0 (identical texts, or a blind oracle)."""
    return np.abs(debiased_logits(logits, swapped)) <= TIE


def length_moments(lengths: Array, rates: Array) -> tuple[float, float, float]:
    """Centred moments (xy, xx, yy) of length and win rate over one prompt's responses; additive."""
    x, y = lengths - lengths.mean(), rates - rates.mean()
    return float(x @ y), float(x @ x), float(y @ y)


def correlation(xy: float, xx: float, yy: float) -> float | None:
    """Pearson correlation from summed centred moments; None when one side does not vary."""
    return xy / float(np.sqrt(xx * yy)) if xx > 0 and yy > 0 else None


def _mirrored(upper: Array) -> Array:
    """Keep the entries i < j; P[j, i] = 1 - P[i, j] and P[i, i] = 1/2, so P + P^T = 1 exactly."""
    above = np.triu(upper, 1)
    return above + np.tril(1.0 - above.T, -1) + 0.5 * np.eye(len(upper))
