"""The real trainer plays finite games (tests/game/finite.py): what it learns is the closed form, and the average
policy's duality gap falls as the theory says. 16 rounds take 1 minute, 64 and 256 more: `make test-all`."""

from __future__ import annotations

import numpy as np
import pytest

from tests.game.finite import average, duality_gap, violations
from tests.game.games import GAMES, GATED
from tests.game.process import Played, play

FROZEN = {"game": "rps", "rounds": 16, "stop": 4, "speed": 1e-9}
BACKWARDS = {"game": "rps", "rounds": 16, "stop": 4, "sign": -1}


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Played]:
    """16 rounds of every game, and 4 of them by a frozen policy and by one that learns to lose."""
    plays = {name: {"game": name, "rounds": 16} for name in GAMES} | {"frozen": FROZEN, "backwards": BACKWARDS}
    found = play(list(plays.values()), tmp_path_factory.mktemp("sixteen"))
    return dict(zip(plays, found, strict=True))


def accepted(name: str, found: Played, rounds: int) -> None:
    """The play is complete, each round converged, and both checks hold."""
    assert len(found.policies) == rounds + 1
    np.testing.assert_allclose([np.exp(policy).sum() for policy in found.policies], 1, rtol=0, atol=1e-6)
    assert found.noise < 1e-5
    assert found.unconverged < 1e-2
    assert violations(GAMES[name], found.policies, rounds) == {}


@pytest.mark.parametrize("name", GAMES)
def test_sixteen_rounds(name: str, sixteen: dict[str, Played]) -> None:
    accepted(name, sixteen[name], 16)


def test_a_frozen_policy_is_rejected(sixteen: dict[str, Played]) -> None:
    found = sixteen["frozen"]
    assert np.abs(np.subtract(found.policies[-1], found.policies[0])).max() < 1e-5
    assert violations(GAMES["rps"], found.policies, 16).keys() == {"closed form", "gap"}
    assert found.unconverged > 0.99


def test_a_wrong_sign_is_rejected(sixteen: dict[str, Played]) -> None:
    found = sixteen["backwards"]
    assert found.unconverged < 1e-2  # learned well, the wrong thing
    assert "closed form" in violations(GAMES["rps"], found.policies, 16)


def test_the_ungated_game_is_not_the_gated_one(sixteen: dict[str, Played]) -> None:
    assert "closed form" in violations(GATED, sixteen["rps"].policies, 16)
    assert "closed form" in violations(GAMES["rps"], sixteen["gated"].policies, 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("rounds", [64, 256])
def test_more_rounds(name: str, rounds: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    (found,) = play([{"game": name, "rounds": rounds}], tmp_path_factory.mktemp("more"))
    accepted(name, found, rounds)
    if (name, rounds) == ("gated", 256):
        assert duality_gap(GAMES["rps"].preference, average(found.policies)) > 0.3  # another equilibrium than ungated


@pytest.mark.slow
def test_the_same_bytes_again(sixteen: dict[str, Played], tmp_path_factory: pytest.TempPathFactory) -> None:
    (again,) = play([{"game": "six", "rounds": 16}], tmp_path_factory.mktemp("again"))
    assert [policy.tolist() for policy in again.policies] == [p.tolist() for p in sixteen["six"].policies]
