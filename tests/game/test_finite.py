from __future__ import annotations

import math

import numpy as np
import pytest

from tests.game.finite import (
    LARGEST,
    Array,
    Game,
    average,
    closed_form,
    deviation,
    duality_gap,
    eta_of,
    gap_bound,
    multiplicities,
    rates,
    violations,
)
from tests.game.games import GAMES, GATED, ROCK_PAPER_SCISSORS, SIX, random_game

EVERY = pytest.mark.parametrize("name", GAMES)


def ideal(game: Game, rounds: int, factor: float = 1.0) -> list[Array]:
    """The closed form's own path; factor 0 is a frozen policy, -1 one that learns to lose."""
    path = [np.log(game.start)]
    for _ in range(rounds):
        path.append(closed_form(game.preference, path[-1], factor * eta_of(game.size, rounds)))
    return path


def test_a_round_by_hand() -> None:
    # P(rock) = .8/2 + .05, P(paper) = .8 + .15/2, P(scissors) = .15 + .05/2; twice, three times and once as likely
    start = ROCK_PAPER_SCISSORS.start
    p = rates(ROCK_PAPER_SCISSORS.preference, start)
    assert p.tolist() == pytest.approx([0.45, 0.875, 0.175], abs=1e-15)
    assert (p * start).sum() == pytest.approx(0.5, abs=1e-15)
    new = np.exp(closed_form(ROCK_PAPER_SCISSORS.preference, np.log(start), 2.0))
    raised = [0.8 * math.exp(0.9), 0.15 * math.exp(1.75), 0.05 * math.exp(0.35)]
    assert new.tolist() == pytest.approx([x / sum(raised) for x in raised], abs=1e-15)


def test_gap_and_bound_by_hand() -> None:
    assert duality_gap(ROCK_PAPER_SCISSORS.preference, ROCK_PAPER_SCISSORS.start) == pytest.approx(0.75, abs=1e-15)
    assert duality_gap(ROCK_PAPER_SCISSORS.preference, np.full(3, 1 / 3)) == pytest.approx(0, abs=1e-15)
    assert eta_of(3, 16) == pytest.approx(math.sqrt(math.log(3) / 2), abs=1e-15)
    assert gap_bound(ROCK_PAPER_SCISSORS.start, 0.4, 10) == pytest.approx(2 * (math.log(20) / 4 + 0.05), abs=1e-15)


def test_average_leaves_the_last_policy_out() -> None:
    assert average([np.log([0.5, 0.5]), np.log([0.9, 0.1]), np.log([0.1, 0.9])]).tolist() == pytest.approx([0.7, 0.3])


def test_the_gated_game_by_hand() -> None:
    assert GATED.preference.tolist() == [
        pytest.approx([0.5, 0.05, 1.0], abs=1e-15),
        pytest.approx([0.95, 0.5, 0.4], abs=1e-15),
        pytest.approx([0.0, 0.6, 0.5], abs=1e-15),
    ]
    equilibrium = np.array([0.1, 0.5, 0.45]) / 1.05  # each as the margin of the other two
    assert duality_gap(GATED.preference, equilibrium) == pytest.approx(0, abs=1e-15)
    assert duality_gap(ROCK_PAPER_SCISSORS.preference, equilibrium) > 0.3
    assert duality_gap(GATED.preference, np.full(3, 1 / 3)) > 0.2


def test_six_is_the_first_of_its_kind() -> None:
    bound = max(gap_bound(SIX.start, eta_of(6, rounds), rounds) for rounds in (16, 64, 256))
    games = (random_game(seed) for seed in range(20))
    fit = [(g.preference < 0.5).any(axis=1).all() and duality_gap(g.preference, g.start) > bound for g in games]
    assert fit.index(True) == 13
    np.testing.assert_array_equal(SIX.preference, random_game(13).preference)


@EVERY
def test_the_games_are_cyclic(name: str) -> None:
    p = GAMES[name].preference
    np.testing.assert_allclose(p + p.T, 1, rtol=0, atol=1e-15)
    assert all((row < 0.5).any() for row in p)  # nobody beats all others
    n = range(len(p))
    assert any(p[i, j] > 0.5 and p[j, k] > 0.5 and p[k, i] > 0.5 for i in n for j in n for k in n)


@EVERY
@pytest.mark.parametrize("rounds", [16, 64, 256])
def test_the_checks_pass_the_closed_form_alone(name: str, rounds: int) -> None:
    game = GAMES[name]
    assert violations(game, ideal(game, rounds), rounds) == {}
    assert violations(game, ideal(game, rounds, factor=0), rounds).keys() == {"closed form", "gap"}
    assert "closed form" in violations(game, ideal(game, rounds, factor=-1), rounds)
    assert "closed form" in violations(game, ideal(game, rounds, factor=0.5), rounds)


def test_the_gap_alone_does_not_see_a_wrong_sign_in_rock_paper_scissors() -> None:
    """To lose at it is to play it backwards, around the same equilibrium; six responses have no such symmetry."""
    assert "gap" not in violations(ROCK_PAPER_SCISSORS, ideal(ROCK_PAPER_SCISSORS, 256, factor=-1), 256)
    assert "gap" in violations(SIX, ideal(SIX, 256, factor=-1), 256)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_missing_number_is_a_complaint() -> None:
    path = ideal(SIX, 16)
    path[3] = np.full(6, np.nan)
    assert violations(SIX, path, 16).keys() == {"closed form", "gap"}


@EVERY
def test_the_minimum_of_the_loss_is_within_c(name: str) -> None:
    """By gradient descent on the logits, in float64, on the loss weighted by pi: the bound's theory."""
    game, eta = GAMES[name], 0.4
    target = eta * (rates(game.preference, game.start) - 0.5)
    h = np.zeros(game.size)
    for _ in range(4000):
        new = game.start * np.exp(h)
        push = game.start * (target - h)
        step = push - new * push.sum()  # d h(y) / d logit(k) = 1[y = k] - new(k)
        logits = np.log(new) + step / game.start.max()
        h = logits - np.logaddexp.reduce(logits) - np.log(game.start)
    path = [np.log(game.start), np.log(game.start) + h]
    rounds = 8 * math.log(game.size) / eta**2
    assert np.abs(push - new * push.sum()).max() < 1e-9
    assert 1e-5 < deviation(game, path, rounds) / eta**3 < LARGEST / 4


def test_multiplicities_by_hand() -> None:
    assert multiplicities(np.array([0.8, 0.15, 0.05]), 64) == [32, 6, 2]
    assert multiplicities(np.array([1 - 2e-9, 1e-9, 1e-9]), 64)[1:] == [1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_multiplicities_are_near_the_policy(seed: int) -> None:
    policy = np.random.default_rng(seed).dirichlet(np.ones(6))
    dealt = multiplicities(policy, 64)
    assert min(dealt) >= 1 and sum(dealt) % 2 == 0 and 32 <= sum(dealt) <= 64
    assert np.abs(np.divide(dealt, sum(dealt)) - policy).max() < 0.03
