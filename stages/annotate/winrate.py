"""From raw oracle logits to preferences, win rates and the pairs (chosen, rejected) to train on. Pure numpy, float64.

M: (K, K) float64, M[i, j] = raw logit of the ordered pair, i shown first, j second; > 0 means i is better.
P: (K, K) float64, P[i, j] = probability that i beats j; P + P^T = 1 exactly, P[i, i] = 1/2.
p: (K,) float64, win rate against the policy itself, p_i = (1/K) sum_j P[i, j], self included.

Where each response was compared with m anchors only, the matrices (of `from_anchors`) have NaN for pairs that did not
meet. Every function of this module accepts them. A win rate is then p_i = (1/K)(1/2 + (K-1) mean_a P[i, a]) over the
anchors a != i, and exact for an anchor, which met all others. The estimate is unbiased for each response, but not for
selected ones: the best and the worst of K estimates are extreme partly by error. At K = 16, m = 3 the chosen response's
win rate is too high, and the rejected one's too low, by about .035 (Bradley-Terry scores and intransitive noise, each
of standard deviation 1). To remove this bias, select by one part of the anchors (`restricted`) and estimate with
`cross_fitted`.

`aggregate_score` is the published recipe (official compute_prob.py): it doubles the logit (K = 2: .668 becomes
.802) and erases cycles (a three-cycle of .88 becomes .50). The matrix is the default, since a preference may
be intransitive.

`select` selects pairs by win rates. Values closer than TIE are equal, and two responses with equal values are a tie,
which is no pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Pair = tuple[int, int]
"""(chosen, rejected)"""

TIE = 1e-12
"""Win rates closer than this are equal: they differ by the rounding of a sum, not by a preference."""


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def debiased_logits(logits: Array, swapped: Array) -> Array:
    """Return L = (logits - swapped) / 2, without the advantage of the response that is shown first.

    logits[i, j]: left i shown first; swapped[i, j]: right j shown first. Both > 0 when the first shown is
    better.
    """
    return 0.5 * (logits - swapped)


def from_anchors(met: Array, anchors: Sequence[int]) -> Array:
    """Return the (K, K) matrix of a quantity that is known between K responses and m anchors of them; NaN elsewhere.

    met: (K, m) antisymmetric quantity of response i and anchor j, such as the debiased logit.
    """
    full = np.full((len(met), len(met)), np.nan)
    full[list(anchors)] = -met.T
    full[:, list(anchors)] = met
    np.fill_diagonal(full, 0.0)
    return full


def preference_matrix(debiased: Array) -> Array:
    """P[i, j] = sigmoid(L[i, j]) for i < j, mirrored as P[j, i] = 1 - P[i, j]; L (K, K) debiased logits.

    P[i, i] = 1/2, so P + P^T = 1 exactly.
    """
    above = np.triu(sigmoid(debiased), 1)
    return above + np.tril(1.0 - above.T, -1) + 0.5 * np.eye(len(debiased))


def aggregate_scores(debiased: Array) -> Array:
    """Published score of each response: s_i = mean_j (M[i, j] - M[j, i]) = mean_j 2 L[i, j], self included (0)."""
    return 2.0 * _row_means(debiased, 0.0)


def preferences(debiased: Array, mode: str) -> Array:
    """P of debiased logits by the setting `win_rate`: matrix and cross_fit, or aggregate_score.

    aggregate_score: P[i, j] = sigmoid(s_i - s_j) of the published scores, transitive whatever the oracle prefers, and
    known for all pairs.
    """
    if mode != "aggregate_score":
        return preference_matrix(debiased)
    scores = aggregate_scores(debiased)
    return preference_matrix(scores[:, None] - scores[None, :])


def win_rates(preference: Array) -> Array:
    """p_i = (1/K) sum_j P[i, j]; their sum is K/2 where all met."""
    return _row_means(preference, 0.5)


def restricted(preference: Array, first: Sequence[int]) -> Array:
    """Return P (K, K) in the rows and columns of the anchors `first`; NaN elsewhere, even where others met."""
    seen = np.full(preference.shape, np.nan)
    seen[list(first)] = preference[list(first)]
    seen[:, list(first)] = preference[:, list(first)]
    np.fill_diagonal(seen, 0.5)
    return seen


def cross_fitted(preference: Array, first: Sequence[int]) -> Array:
    """Return win rates (K,) that are unbiased even for responses selected by the anchors `first` = A1.

    p_i = (1/K) (1/2 + sum_{a in A1} P[i, a] + (K - 1 - |A1|) mean_{a in A2} P[i, a]),  a != i in both

    A2: the responses that i met and that are not in A1; |A1| without i. Given A1, which the selection used, the first
    sum is fixed, and A2 is a random draw of the rest: its mean is unbiased. Exact for an anchor, which met all.
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
    """Return whether the chosen response loses to the rejected one: P < 1/2; False if they did not meet."""
    return bool(preference[chosen, rejected] < 0.5)


def cycles(preference: Array) -> tuple[int, int]:
    """Return (three-cycles, triples) of the unordered triples that all met.

    A triple is a cycle where P_ij, P_jk, P_ki are all > 1/2 in one of its two directions.
    """
    beats = (preference > 0.5).astype(np.int64)
    met = (~np.isnan(preference) & ~np.eye(len(beats), dtype=bool)).astype(np.int64)
    return int(np.trace(beats @ beats @ beats)) // 3, int(np.trace(met @ met @ met)) // 6


def position_disagreement(logits: Array, swapped: Array) -> Mask:
    """Return the mask of pairs whose winner changes with the order: both logits have the same sign."""
    return np.sign(logits) * np.sign(swapped) > 0


def ties(logits: Array, swapped: Array) -> Mask:
    """Return the mask of pairs without a preference: the debiased logit is 0."""
    return np.abs(debiased_logits(logits, swapped)) <= TIE


def length_moments(lengths: Array, rates: Array) -> tuple[float, float, float]:
    """Return centred moments (xy, xx, yy) of length and win rate over one prompt's responses; they can be added."""
    x, y = lengths - lengths.mean(), rates - rates.mean()
    return float(x @ y), float(x @ x), float(y @ y)


def correlation(xy: float, xx: float, yy: float) -> float | None:
    """Return the Pearson correlation from summed centred moments; None where a variance is 0."""
    return xy / float(np.sqrt(xx * yy)) if xx > 0 and yy > 0 else None


def _row_means(values: Array, own: float) -> Array:
    """Return the mean of each row of (K, K) with diagonal `own`; with NaN, (own + (K-1) mean of known others) / K."""
    rows = np.ascontiguousarray(values)
    means: Array = rows.mean(axis=1)
    k = len(rows)
    for i in np.flatnonzero(np.isnan(means)):
        others = np.delete(rows[i], i)
        means[i] = (own + (k - 1) * others[~np.isnan(others)].mean()) / k
    return means


def generator(purpose: str, seed: int, row_id: str) -> np.random.Generator:
    """Return the random generator of one prompt: the same in every shard and run."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{row_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def first_half(anchors: Sequence[int], row_id: str) -> list[int]:
    """Return the (smaller) half of a prompt's anchors that selects its pairs under `cross_fit`.

    The draw depends on the prompt alone, so that the steps `pairs` and `calibrate` make the same.
    """
    drawn = generator("halves", 0, row_id).choice(sorted(anchors), len(anchors) // 2, replace=False)
    return sorted(int(one) for one in drawn)


def candidates(by: str, k: int) -> int:
    """Return the number of pairs of a prompt without ties."""
    return k * (k - 1) // 2 if by == "all_pairs" else 1


def select(values: Array, by: str, row_id: str, seed: int) -> list[Pair]:
    """Return the pairs of a prompt by the values (K,) of its responses; none where all are tied.

    extremes        the best against the worst, the first index among equals, as in SPPO
    all_pairs       every two responses whose values differ, the better one chosen: K(K-1)/2 at most
    top_vs_random   the best against one drawn uniformly from all worse ones, by `row_id` and `seed`
    """
    slack = TIE * max(1.0, float(np.abs(values).max()))
    first, last = (int(np.argmax(mask)) for mask in (values >= values.max() - slack, values <= values.min() + slack))
    if by == "extremes":
        return [(first, last)] if values.max() - values.min() > slack else []
    if by == "all_pairs":
        both = [(i, j) for i, j in combinations(range(len(values)), 2) if abs(values[i] - values[j]) > slack]
        return [(i, j) if values[i] > values[j] else (j, i) for i, j in both]
    if by == "top_vs_random":
        worse = np.flatnonzero(values < values.max() - slack)
        return [(first, int(generator(by, seed, row_id).choice(worse)))] if len(worse) else []
    raise ValueError(f"selection {by!r} is not extremes, all_pairs or top_vs_random")
