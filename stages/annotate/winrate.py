"""From raw oracle logits to preferences, win rates and a pair of responses. Pure numpy, float64.

M: (K, K) float64, M[i, j] = raw logit of the ordered pair, i shown first, j second; > 0 means i is better.
P: (K, K) float64, P[i, j] = probability that i beats j; P + P^T = 1 exactly, P[i, i] = 1/2.
p: (K,) float64, win rate against the policy itself, p_i = (1/K) sum_j P[i, j], self included.

Where each response met m anchors only, the matrices have NaN for pairs that did not meet; `from_anchors` makes them.
Everything here takes them: a win rate is then the unbiased estimate p_i = (1/K)(1/2 + (K-1) mean_a P[i, a]) over the
anchors a != i, exact for an anchor, which met all others. Unbiased for each response, not for those that are selected:
the best and the worst of K estimates are the best and the worst partly by error. At K = 16, m = 3 the chosen response's
win rate comes out too high, and the rejected one's too low, by about .035 (Bradley-Terry scores and intransitive noise,
both of deviation 1). `restricted` selects on one part of the anchors, `cross_fitted` then has no such bias.

`aggregate_*` is the published recipe (official compute_prob.py): it doubles the logit (K = 2: .668 becomes
.802) and erases cycles (a three-cycle of .88 becomes .50). The matrix is the default, since a preference may
be intransitive.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def from_anchors(met: Array, anchors: Sequence[int]) -> Array:
    """Return the (K, K) matrix of what K responses and m anchors among them are to each other; NaN elsewhere.

    met: (K, m) antisymmetric quantity of response i and anchor j, such as the debiased logit.
    """
    full = np.full((len(met), len(met)), np.nan)
    full[list(anchors)] = -met.T
    full[:, list(anchors)] = met
    np.fill_diagonal(full, 0.0)
    return full


def preference_matrix(debiased: Array) -> Array:
    """P[i, j] = sigmoid(L[i, j]) for i < j, mirrored as P[j, i] = 1 - P[i, j]; L (K, K) debiased logits."""
    return _mirrored(sigmoid(debiased))


def aggregate_scores(debiased: Array) -> Array:
    """Published score of each response: s_i = mean_j (M[i, j] - M[j, i]) = mean_j 2 L[i, j], self included (0)."""
    return 2.0 * _row_means(debiased, 0.0)


def aggregate_matrix(debiased: Array) -> Array:
    """P[i, j] = sigmoid(s_i - s_j) for i < j, mirrored: transitive whatever the oracle said, known for all pairs."""
    scores = aggregate_scores(debiased)
    return _mirrored(sigmoid(scores[:, None] - scores[None, :]))


def win_rates(preference: Array) -> Array:
    """p_i = (1/K) sum_j P[i, j]; their sum is K/2 where all met."""
    return _row_means(preference, 0.5)


def restricted(preference: Array, first: Sequence[int]) -> Array:
    """P (K, K) as far as the anchors `first` say it: NaN between two others, also where they met."""
    seen = np.full(preference.shape, np.nan)
    seen[list(first)] = preference[list(first)]
    seen[:, list(first)] = preference[:, list(first)]
    np.fill_diagonal(seen, 0.5)
    return seen


def cross_fitted(preference: Array, first: Sequence[int]) -> Array:
    """Win rates (K,) that are unbiased whatever was selected by the anchors `first` = A1.

    p_i = (1/K) (1/2 + sum_{a in A1} P[i, a] + (K - 1 - |A1|) mean_{a in A2} P[i, a]),  a != i in both

    A2: the others that i met, those that are not in A1; |A1| without i. Given A1, which the selection has seen, the
    first sum is known, and A2 is a random draw of the rest: its mean is unbiased. Exact for an anchor, which met all.
    """
    k, own = len(preference), np.eye(len(preference), dtype=bool)
    seen = np.zeros(k, dtype=bool)
    seen[list(first)] = True
    known, rest = seen & ~own, ~seen & ~own & ~np.isnan(preference)
    filled = np.nan_to_num(preference)
    means = (filled * rest).sum(axis=1) / rest.sum(axis=1)
    rates: Array = (0.5 + (filled * known).sum(axis=1) + (k - 1 - known.sum(axis=1)) * means) / k
    return rates


def best(rates: Array) -> int:
    """Return the first response whose win rate is the highest, up to TIE: best-of-n."""
    return int(np.argmax(rates >= rates.max() - TIE))


def loses_head_to_head(preference: Array, chosen: int, rejected: int) -> bool:
    """Whether the chosen response loses its direct duel with the rejected one: P < 1/2; not if they did not meet."""
    return bool(preference[chosen, rejected] < 0.5)


def cycles(preference: Array) -> tuple[int, int]:
    """Return (three-cycles, triples): unordered triples that all met, with P_ij, P_jk, P_ki all > 1/2 one way round."""
    beats = (preference > 0.5).astype(np.int64)
    met = (~np.isnan(preference) & ~np.eye(len(beats), dtype=bool)).astype(np.int64)
    return int(np.trace(beats @ beats @ beats)) // 3, int(np.trace(met @ met @ met)) // 6


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


def _row_means(values: Array, own: float) -> Array:
    """Mean of each row of (K, K), whose diagonal is `own`; of a row with NaN, (own + (K-1) mean of the others) / K."""
    found = np.ascontiguousarray(values)
    means: Array = found.mean(axis=1)
    k = len(found)
    for i in np.flatnonzero(np.isnan(means)):
        others = np.delete(found[i], i)
        means[i] = (own + (k - 1) * others[~np.isnan(others)].mean()) / k
    return means


def _mirrored(upper: Array) -> Array:
    """Keep the entries i < j; P[j, i] = 1 - P[i, j] and P[i, i] = 1/2, so P + P^T = 1 exactly."""
    above = np.triu(upper, 1)
    return above + np.tril(1.0 - above.T, -1) + 0.5 * np.eye(len(upper))
