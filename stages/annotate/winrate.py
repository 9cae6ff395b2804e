"""From raw oracle logits to preferences, win rates and the pairs (chosen, rejected) to train on. Pure numpy, float64.

M: (K, K) float64, M[i, j] = raw logit of the ordered pair, i shown first, j second; > 0 means i is better.
P: (K, K) float64, P[i, j] = probability that i beats j; P + P^T = 1 exactly, P[i, i] = 1/2.
p: (K,) float64, win rate against the policy itself, p_i = (1/K) sum_j P[i, j], self included.

Where each response met m anchors only, the matrices have NaN for pairs that did not meet; `from_anchors` makes them.
Every function of this module takes them: a win rate is then p_i = (1/K)(1/2 + (K-1) mean_a P[i, a]) over the anchors
a != i, exact for an anchor, which met all others. The estimate is unbiased for each response, but not for those that
are selected: the best and the worst of K estimates are so partly by error. At K = 16, m = 3 the chosen response's win
rate is too high, and the rejected one's too low, by about .035 (Bradley-Terry scores and intransitive noise, both of
deviation 1). `restricted` selects on one part of the anchors, `cross_fitted` then has no such bias.

`aggregate_score` is the published recipe (official compute_prob.py): it doubles the logit (K = 2: .668 becomes
.802) and erases cycles (a three-cycle of .88 becomes .50). The matrix is the default, since a preference may
be intransitive.

`select` takes pairs by win rates. Values closer than TIE are equal; what has no pair is a tie: two responses whose
values are equal, or a prompt all of whose are.
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
    """P (K, K) as far as the anchors `first` know it: NaN between two others, also where they met."""
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
    rows = np.ascontiguousarray(values)
    means: Array = rows.mean(axis=1)
    k = len(rows)
    for i in np.flatnonzero(np.isnan(means)):
        others = np.delete(rows[i], i)
        means[i] = (own + (k - 1) * others[~np.isnan(others)].mean()) / k
    return means


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
    """Return the pairs of a prompt, by the values (K,) of its responses; none where all are tied.

    extremes        the best and the worst, the first index among equals: SPPO's
    all_pairs       every two responses whose values differ, the better one chosen: K(K-1)/2 at most
    top_vs_random   the best, and one drawn from all that are worse, all equally likely, by `row_id` and `seed`
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
