"""The semantic gate: every property that methods claims, for the scopes it claims them for, at 1e-12."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from sparring.stages.annotate import gate
from sparring.stages.annotate.gates.power import PowerGate
from sparring.stages.annotate.winrate import preference_matrix, win_rates
from tests.refusals import refused
from tests.settings import BOUNDS, LINEAR_GATE

Array = NDArray[np.float64]
TOLERANCE = 1e-12
SCOPES = ("pairwise", "pair", "row_mean")


@st.composite
def games(draw: st.DrawFn) -> tuple[Array, Array]:
    """A preference matrix and the similarities of its responses (float32 values, as they are stored)."""
    k = draw(st.integers(2, 6))
    p = preference_matrix(draw(arrays(np.float64, (k, k), elements=st.floats(-8, 8))))
    drawn = draw(arrays(np.float32, (k, k), elements=st.floats(-1, 1, width=32))).astype(np.float64)
    above = np.triu(drawn, 1)
    return p, above + above.T + np.eye(k)


thresholds = st.tuples(st.floats(-1, 0.9), st.floats(0.01, 1.5)).map(lambda t: (t[0], t[0] + t[1]))


def power(exponent: float) -> PowerGate:
    return PowerGate(name="power", exponent=exponent, **BOUNDS)


def calibrated(p: Array, s: Array, bounds: tuple[float, float], scope: str) -> Array:
    return gate.gated(p, gate.spread(LINEAR_GATE.g(s, *bounds), scope, 0, len(p) - 1))


def test_linear_gate_by_hand() -> None:
    s = np.array([[1.0, 0.6, 0.1], [0.6, 1.0, 0.9], [0.1, 0.9, 1.0]])
    expected = [[1.0, 2 / 3, 0.0], [2 / 3, 1.0, 1.0], [0.0, 1.0, 1.0]]
    np.testing.assert_allclose(LINEAR_GATE.g(s, 0.2, 0.8), expected, atol=1e-15)


@pytest.mark.parametrize("scope", SCOPES)
@given(game=games(), bounds=thresholds, exponent=st.just(1.0) | st.floats(0.1, 8))
def test_every_exponent_has_the_properties(
    scope: str, game: tuple[Array, Array], bounds: tuple[float, float], exponent: float
) -> None:
    p, s = game
    g = power(exponent).g(s, *bounds)
    after = gate.gated(p, gate.spread(g, scope, 0, len(p) - 1))
    assert (np.abs(after - 0.5) <= np.abs(p - 0.5) + TOLERANCE).all()
    assert ((after - 0.5) * (p - 0.5) >= -TOLERANCE).all()
    if scope == "pairwise":
        np.testing.assert_allclose(after + after.T, 1.0, atol=TOLERANCE, rtol=0)
        assert win_rates(after).sum() == pytest.approx(len(p) / 2, abs=TOLERANCE)
        np.testing.assert_allclose(after[s >= bounds[1]], 0.5, atol=TOLERANCE, rtol=0)
        assert np.array_equal(after[s <= bounds[0]], p[s <= bounds[0]])


def test_power_by_hand() -> None:
    np.testing.assert_allclose(power(3).g(np.array([0.2, 0.5, 0.8, 1.0]), 0.2, 0.8), [0, 0.125, 1, 1], atol=1e-15)


def test_scopes_by_hand() -> None:
    p = np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.3], [0.2, 0.7, 0.5]])
    g = np.array([[1.0, 0.5, 0.25], [0.5, 1.0, 0.75], [0.25, 0.75, 1.0]])
    pairwise = gate.gated(p, gate.spread(g, "pairwise", 0, 1))
    expected = [[0.5, 0.7, 0.725], [0.3, 0.5, 0.45], [0.275, 0.55, 0.5]]
    np.testing.assert_allclose(pairwise, expected, atol=1e-15)
    np.testing.assert_allclose(win_rates(pairwise), [1.925 / 3, 1.25 / 3, 1.325 / 3], atol=1e-15)
    rates = win_rates(p)  # 2.2/3, .9/3, 1.4/3
    pair = win_rates(gate.gated(p, gate.spread(g, "pair", 0, 1)))
    np.testing.assert_allclose(pair, 0.5 + 0.5 * (rates - 0.5), atol=1e-15)
    row_mean = win_rates(gate.gated(p, gate.spread(g, "row_mean", 0, 1)))
    left = np.array([1 - 0.375, 1 - 0.625, 1 - 0.5])
    np.testing.assert_allclose(row_mean, 0.5 + left * (rates - 0.5), atol=1e-15)


def test_mean_shift_is_over_the_off_diagonal() -> None:
    p = np.array([[0.5, 0.9], [0.1, 0.5]])
    assert gate.mean_shift(p, gate.gated(p, np.full((2, 2), 0.5))) == pytest.approx(0.2, abs=1e-15)


@pytest.mark.parametrize("scope", ("pair", "row_mean"))
@given(game=games(), bounds=thresholds)
def test_win_rates_shrink_and_keep_their_side(
    scope: str, game: tuple[Array, Array], bounds: tuple[float, float]
) -> None:
    p, s = game
    after, before = win_rates(calibrated(p, s, bounds, scope)) - 0.5, win_rates(p) - 0.5
    assert (np.abs(after) <= np.abs(before) + TOLERANCE).all()
    assert (after * before >= -TOLERANCE).all()


@given(game=games(), bounds=thresholds)
def test_pairwise_between_floor_and_ceil(game: tuple[Array, Array], bounds: tuple[float, float]) -> None:
    p, s = game
    after = calibrated(p, s, bounds, "pairwise")
    between = (s > bounds[0]) & (s < bounds[1])
    left = (bounds[1] - s[between]) / (bounds[1] - bounds[0])
    np.testing.assert_allclose(after[between] - 0.5, left * (p[between] - 0.5), atol=TOLERANCE, rtol=0)


@given(game=games(), bounds=thresholds)
def test_row_mean_and_pair_follow_their_formula(game: tuple[Array, Array], bounds: tuple[float, float]) -> None:
    p, s = game
    g, rates, k = LINEAR_GATE.g(s, *bounds), win_rates(p), len(p)
    mean = np.array([np.mean([g[i, j] for j in range(k) if j != i]) for i in range(k)])
    after = win_rates(calibrated(p, s, bounds, "row_mean"))
    np.testing.assert_allclose(after, 0.5 + (1 - mean) * (rates - 0.5), atol=TOLERANCE, rtol=0)
    after = win_rates(calibrated(p, s, bounds, "pair"))
    np.testing.assert_allclose(after, 0.5 + (1 - g[0, k - 1]) * (rates - 0.5), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("scope", SCOPES)
@given(p=st.floats(0, 1), s=st.floats(-1, 1, width=32), bounds=thresholds)
def test_published_win_rates_of_two_are_gated_as_those_of_p(
    scope: str, p: float, s: float, bounds: tuple[float, float]
) -> None:
    game = np.array([[0.5, p], [1 - p, 0.5]])
    full = gate.spread(LINEAR_GATE.g(np.array([[1.0, s], [s, 1.0]]), *bounds), scope, 0, 1)
    after = gate.gated_rates(win_rates(game), full)
    np.testing.assert_allclose(after, win_rates(gate.gated(game, full)), atol=TOLERANCE, rtol=0)


def test_published_win_rates_by_hand() -> None:
    g = np.array([[1.0, 0.5, 0.25], [0.5, 1.0, 0.75], [0.25, 0.75, 1.0]])
    after = gate.gated_rates(np.array([0.9, 0.5, 0.1]), g)
    np.testing.assert_allclose(after, [0.5 + 0.625 * 0.4, 0.5, 0.5 - 0.5 * 0.4], atol=1e-15)


@pytest.mark.parametrize("scope", SCOPES)
@given(game=games())
def test_a_closed_gate_returns_p_bit_for_bit(scope: str, game: tuple[Array, Array]) -> None:
    p, _ = game
    after = gate.gated(p, gate.spread(np.zeros_like(p), scope, 0, 1))
    assert after.tobytes() == p.tobytes() and win_rates(after).tobytes() == win_rates(p).tobytes()


def test_a_closed_gate_does_not_round() -> None:
    p = np.array([[0.5, 0.1], [0.9, 0.5]])
    assert 0.5 + (0.1 - 0.5) != 0.1
    assert gate.gated(p, np.zeros((2, 2))).tolist() == p.tolist()


def test_pairwise_can_turn_the_order_of_two_responses() -> None:
    """What methods calls not preserved: 0 beats 1 on average until its one win is gated away."""
    p = np.array([[0.5, 0.9, 0.45], [0.1, 0.5, 0.6], [0.55, 0.4, 0.5]])
    g = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    before, after = win_rates(p), win_rates(gate.gated(p, g))
    assert before[0] > before[1] and after[0] < after[1] and after[0] < 0.5


def test_unknown_scope() -> None:
    with refused(ValueError, "'all'"):
        gate.spread(np.eye(2), "all", 0, 1)


def test_off_diagonal_takes_each_pair_once() -> None:
    assert gate.off_diagonal(np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 4.0], [3.0, 4.0, 1.0]])).tolist() == [
        2,
        3,
        4,
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([2, 3])), max_size=40), st.integers(0, 99))
def test_permuted_sources_shuffle_within_equal_k(prompts: list[tuple[int, int]], seed: int) -> None:
    sources = gate.permuted_sources(prompts, seed)
    assert sorted(sources) == list(range(len(prompts)))
    sizes = Counter(k for _, k in prompts)
    for index, source in enumerate(sources):
        assert prompts[source][1] == prompts[index][1]
        assert source != index or sizes[prompts[index][1]] == 1
    assert sources == gate.permuted_sources(prompts, seed)


def test_permuted_sources_follow_the_seed_and_read_few_parts() -> None:
    prompts = [(part, 5) for part in range(40) for _ in range(16)]
    one, two = gate.permuted_sources(prompts, 1), gate.permuted_sources(prompts, 2)
    assert one != two
    for part in range(40):
        rows = [source for (p, _), source in zip(prompts, one, strict=True) if p == part]
        assert len({prompts[source][0] for source in rows}) <= 3
