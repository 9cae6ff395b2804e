"""The games that are played."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparring.stages.annotate.gate import gated
from tests.game.finite import Game
from tests.settings import LINEAR_GATE

ROCK_PAPER_SCISSORS = Game(
    preference=np.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]),
    start=np.array([0.8, 0.15, 0.05]),
)
"""The winner always wins: no matrix has targets, and a distance from the closed form, as large."""


def random_game(seed: int) -> Game:
    """Six responses, P = sigma(L), L skew-symmetric of standard normal entries; most of the policy is on the first."""
    normal = np.random.default_rng(seed).normal(size=(6, 6))
    return Game(
        preference=1 / (1 + np.exp((normal.T - normal) / np.sqrt(2))),
        start=np.array([0.75, 0.05, 0.05, 0.05, 0.05, 0.05]),
    )


SIX = random_game(13)
"""The first seed with which no response beats all others and a policy that stays at the start fails every gap bound."""

SIMILARITY = np.array([[1.0, 0.1, 0.0], [0.1, 1.0, 0.8], [0.0, 0.8, 1.0]])
"""Paper and scissors say nearly the same."""

GATED = replace(
    ROCK_PAPER_SCISSORS, preference=gated(ROCK_PAPER_SCISSORS.preference, LINEAR_GATE.g(SIMILARITY, 0.0, 1.0))
)
"""P~ of the pairwise gate. Its equilibrium is (.10, .48, .43): each response weighs as the margin of the other two."""

GAMES = {"rps": ROCK_PAPER_SCISSORS, "six": SIX, "gated": GATED}
