"""Preference matrix, win rates, selection and the numbers of the collapse panel."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from sparring.stages.annotate import winrate

Array = NDArray[np.float64]


@st.composite
def logit_matrices(draw: st.DrawFn, low: int = 2, high: int = 7) -> Array:
    k = draw(st.integers(low, high))
    logits = draw(arrays(np.float64, (k, k), elements=st.floats(-40, 40)))
    np.fill_diagonal(logits, 0.0)
    return logits


def extremes(values: Array) -> list[winrate.Pair]:
    return winrate.select(values, "extremes", "", 0)


def debiased(logits: Array) -> Array:
    return winrate.debiased_logits(logits, logits.T)


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def antisymmetric(p: Array) -> Array:
    """Logits of an oracle without position bias that prefers as P says."""
    return np.vectorize(logit)(p)


def test_preference_is_half_the_difference_of_both_orders() -> None:
    logits = np.array([[0.0, 2.0], [-1.0, 0.0]])  # shown first, 0 gains 2; 1 loses 1: L = (2 + 1) / 2
    assert winrate.debiased_logits(logits, logits.T)[0, 1] == 1.5
    p = winrate.preference_matrix(debiased(logits))
    assert p[0, 1] == pytest.approx(0.8175744761936437, abs=1e-15)
    assert p[1, 0] == pytest.approx(0.1824255238063563, abs=1e-15)


@given(logit_matrices())
def test_preference_matrix_is_constant_sum_without_rounding(logits: Array) -> None:
    for p in (winrate.preference_matrix(debiased(logits)), winrate.preferences(debiased(logits), "aggregate_score")):
        assert np.array_equal(p + p.T, np.ones_like(p))
        assert np.array_equal(np.diag(p), np.full(len(p), 0.5))
        assert ((p >= 0) & (p <= 1)).all()


@given(logit_matrices(), st.floats(-5, 5))
def test_what_is_gained_by_being_shown_first_cancels(logits: Array, bias: float) -> None:
    shown_first = logits + bias * (1 - np.eye(len(logits)))
    expected = winrate.preference_matrix(debiased(logits))
    np.testing.assert_allclose(winrate.preference_matrix(debiased(shown_first)), expected, atol=1e-12, rtol=0)


@given(logit_matrices())
def test_entries_are_the_logistic_of_the_debiased_logit(logits: Array) -> None:
    p = winrate.preference_matrix(debiased(logits))
    for i, j in combinations(range(len(p)), 2):
        expected = 1 / (1 + np.exp(-(logits[i, j] - logits[j, i]) / 2))
        assert p[i, j] == pytest.approx(expected, abs=1e-12)


def test_sigmoid_at_the_ends() -> None:
    assert winrate.sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


def test_win_rates_count_self() -> None:
    p = np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.7], [0.2, 0.3, 0.5]])
    np.testing.assert_allclose(winrate.win_rates(p), [2.2 / 3, 1.3 / 3, 1.0 / 3], atol=1e-15)


@given(logit_matrices())
def test_win_rates_sum_to_half_of_k(logits: Array) -> None:
    p = winrate.preference_matrix(debiased(logits))
    assert winrate.win_rates(p).sum() == pytest.approx(len(p) / 2, abs=1e-12)


def test_published_score_doubles_the_logit_of_two_responses() -> None:
    logits = antisymmetric(np.array([[0.5, 0.668], [0.332, 0.5]]))
    assert winrate.preference_matrix(debiased(logits))[0, 1] == pytest.approx(0.668, abs=1e-12)
    assert winrate.preferences(debiased(logits), "aggregate_score")[0, 1] == pytest.approx(0.802, abs=5e-4)


def test_published_score_erases_a_cycle_that_the_matrix_keeps() -> None:
    logits = antisymmetric(np.array([[0.5, 0.88, 0.12], [0.12, 0.5, 0.88], [0.88, 0.12, 0.5]]))
    kept, erased = winrate.preference_matrix(debiased(logits)), winrate.preferences(debiased(logits), "aggregate_score")
    assert kept[0, 1] == pytest.approx(0.88, abs=1e-12) and winrate.cycles(kept) == (1, 1)
    np.testing.assert_allclose(erased, 0.5, atol=1e-12)
    assert winrate.cycles(np.where(abs(erased - 0.5) < 1e-12, 0.5, erased)) == (0, 1)


def test_aggregate_score_is_the_mean_difference_self_included() -> None:
    logits = np.array([[0.0, 1.0, 2.0], [3.0, 0.0, 4.0], [5.0, 6.0, 0.0]])
    np.testing.assert_allclose(winrate.aggregate_scores(debiased(logits)), [-5 / 3, 0.0, 5 / 3], atol=1e-15)


@given(logit_matrices())
def test_published_win_rates_order_responses_as_their_scores(logits: Array) -> None:
    scores = winrate.aggregate_scores(debiased(logits))
    for pair in extremes(winrate.win_rates(winrate.preferences(debiased(logits), "aggregate_score"))):
        assert scores[pair[0]] == pytest.approx(scores.max(), abs=1e-9)
        assert scores[pair[1]] == pytest.approx(scores.min(), abs=1e-9)


def test_extremes() -> None:
    assert extremes(np.array([0.5, 0.7, 0.3, 0.6])) == [(1, 2)]
    assert extremes(np.array([0.4, 0.6])) == [(1, 0)]
    assert extremes(np.array([0.3, 0.7, 0.3, 0.7])) == [(1, 0)]  # the first among equals
    assert extremes(np.array([0.5, 0.5, 0.5])) == []


def test_rounding_makes_no_winner() -> None:
    assert extremes(np.array([0.5, 0.5 + 2e-16, 0.5 - 1e-16])) == []
    assert extremes(np.array([0.6 - 1e-16, 0.6, 0.4 + 1e-16, 0.4])) == [(0, 2)]


@given(arrays(np.float64, st.integers(2, 9), elements=st.floats(0, 1)))
def test_chosen_is_never_rejected(values: Array) -> None:
    for pair in extremes(values):
        assert values[pair[0]] > values[pair[1]]
        assert values[pair[0]] == pytest.approx(values.max(), abs=1e-11)
        assert values[pair[1]] == pytest.approx(values.min(), abs=1e-11)


def test_a_chosen_response_can_lose_its_direct_duel() -> None:
    p = np.array([[0.5, 0.45, 0.95], [0.55, 0.5, 0.1], [0.05, 0.9, 0.5]])
    assert extremes(winrate.win_rates(p)) == [(0, 1)]
    assert winrate.loses_head_to_head(p, 0, 1) and not winrate.loses_head_to_head(p, 0, 2)


@given(logit_matrices(low=2, high=6))
def test_cycles_against_counting_by_hand(logits: Array) -> None:
    p = winrate.preference_matrix(debiased(logits))
    triples = list(combinations(range(len(p)), 3))
    round_trips = [
        (p[i, j] > 0.5 and p[j, k] > 0.5 and p[k, i] > 0.5) or (p[j, i] > 0.5 and p[k, j] > 0.5 and p[i, k] > 0.5)
        for i, j, k in triples
    ]
    assert winrate.cycles(p) == (sum(round_trips), len(triples))


def test_position_disagreement_and_ties() -> None:
    logits = np.array([1.0, 1.0, -2.0, 0.0, 3.0])
    swapped = np.array([2.0, -1.0, -0.5, 1.0, 3.0])  # both orders favour first; agree; both favour second; …
    assert winrate.position_disagreement(logits, swapped).tolist() == [True, False, True, False, True]
    assert winrate.ties(logits, swapped).tolist() == [False, False, False, False, True]


def test_length_correlation_is_within_prompts() -> None:
    one = winrate.length_moments(np.array([1.0, 2.0, 4.0]), np.array([0.2, 0.5, 0.8]))
    assert winrate.correlation(*one) == pytest.approx(np.corrcoef([1, 2, 4], [0.2, 0.5, 0.8])[0, 1], abs=1e-12)
    shorter_wins = winrate.length_moments(np.array([101.0, 102.0, 104.0]), np.array([0.8, 0.5, 0.2]))
    both = [a + b for a, b in zip(one, shorter_wins, strict=True)]
    assert winrate.correlation(*both) == pytest.approx(0.0, abs=1e-12)
    assert winrate.correlation(*winrate.length_moments(np.ones(3), np.array([0.2, 0.5, 0.8]))) is None


@given(logit_matrices(low=4, high=8), st.data())
def test_against_anchors_only(logits: Array, data: st.DataObject) -> None:
    """Rows of anchors are whole, others know the anchors; a matrix whose anchors are all is the whole matrix."""
    k, full = len(logits), debiased(logits)
    anchors = sorted(data.draw(st.sets(st.integers(0, k - 1), min_size=2, max_size=k)))
    found = winrate.from_anchors(full[:, anchors], anchors)
    known = ~np.isnan(found)
    assert np.array_equal(found[known], full[known])
    assert known[anchors].all() and known[:, anchors].all()
    assert known.sum() == k * k - (k - len(anchors)) * (k - len(anchors) - 1)
    p, rates = winrate.preference_matrix(found), winrate.win_rates(winrate.preference_matrix(found))
    whole = winrate.win_rates(winrate.preference_matrix(full))
    np.testing.assert_allclose(rates[anchors], whole[anchors], atol=1e-12)
    for i in set(range(k)) - set(anchors):
        assert rates[i] == pytest.approx((0.5 + (k - 1) * p[i, anchors].mean()) / k, abs=1e-12)


def test_the_estimate_against_anchors_is_unbiased() -> None:
    """Its mean over every choice of m anchors is the win rate, and the aggregate score."""
    k, logits = 5, np.random.default_rng(0).normal(size=(5, 5))
    full = debiased(logits)
    for m in (2, 3):
        each = [winrate.from_anchors(full[:, a], a) for a in map(list, combinations(range(k), m))]
        rates = np.mean([winrate.win_rates(winrate.preference_matrix(one)) for one in each], axis=0)
        np.testing.assert_allclose(rates, winrate.win_rates(winrate.preference_matrix(full)), atol=1e-12)
        scores = np.mean([winrate.aggregate_scores(one) for one in each], axis=0)
        np.testing.assert_allclose(scores, winrate.aggregate_scores(full), atol=1e-12)


def test_cycles_count_triples_that_met() -> None:
    p = winrate.preference_matrix(antisymmetric(np.array([[0.5, 0.8, 0.3], [0.2, 0.5, 0.7], [0.7, 0.3, 0.5]])))
    assert winrate.cycles(p) == (1, 1)
    p[0, 1] = p[1, 0] = np.nan
    assert winrate.cycles(p) == (0, 0)


def test_cross_fitted_win_rates_by_hand() -> None:
    """K = 4, anchors 0 and 1, the first half is 0: of 2, P[2, 0] is known and P[2, 1] stands for the two others."""
    p = np.full((4, 4), np.nan)
    for i, j, value in ((0, 1, 0.6), (0, 2, 0.7), (0, 3, 0.9), (1, 2, 0.2), (1, 3, 0.8)):
        p[i, j], p[j, i] = value, 1 - value
    np.fill_diagonal(p, 0.5)
    found = winrate.cross_fitted(p, [0])
    assert found == pytest.approx([2.7 / 4, 1.9 / 4, (0.5 + 0.3 + 2 * 0.8) / 4, (0.5 + 0.1 + 2 * 0.2) / 4])
    seen = winrate.restricted(p, [0])
    assert np.isnan(seen[1, 2]) and seen[2, 0] == pytest.approx(0.3) and (np.diag(seen) == 0.5).all()
    assert winrate.win_rates(seen) == pytest.approx(
        [2.7 / 4, (0.5 + 3 * 0.4) / 4, (0.5 + 3 * 0.3) / 4, (0.5 + 3 * 0.1) / 4]
    )


def test_cross_fitted_win_rates_are_exact_where_all_met() -> None:
    p = winrate.preference_matrix(np.random.default_rng(0).normal(size=(5, 5)))
    np.testing.assert_allclose(winrate.cross_fitted(p, [1, 3]), winrate.win_rates(p), atol=1e-15)
