"""Self-play on a finite game: one prompt, n atomic responses, a known preference matrix. Pure numpy, float64.

P: (n, n), P[i, j] = probability that i beats j, P + P^T = 1; pi: (n,) a policy; log_pi its logarithm, in nats.

    pi_{t+1}(y) ∝ pi_t(y) exp(eta P(y ≻ pi_t)),   eta = sqrt(8 ln n / T),   T rounds

Wu et al., arXiv 2405.00675: multiplicative weights, whose average policy's duality gap falls like 1/sqrt(T), while the
last policy need not converge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LARGEST = 1 / 16
"""C: a trained step lies within C eta^3 nats of the closed form.

The loss weighted by pi, sum_y pi(y) 1/2 (h(y) - tau(y))^2 with tau = eta (P(y ≻ pi) - 1/2), is least, among policies,
at h = tau - lam e^h, lam the multiplier of sum_y pi e^h = 1. To third order lam = 1/2 eta^2 Var(p), so h differs from
the closed form tau - log sum_y pi e^tau by lam |tau| <= 1/2 eta^2 Var(p) * eta max|p - 1/2| <= eta^3 / 16, as
Var <= 1/4 and |p - 1/2| <= 1/2. These games come to .003 to .008. The rest is for the optimisation and for weights w
that are not pi: h = tau - lam (pi/w) e^h. A response too rare for a place of its own is off by lam itself, which is of
second order: inside C up to T = 256 here, not for ever.
"""


@dataclass(frozen=True, kw_only=True)
class Game:
    """A preference matrix and where the policy starts, off the fixed point: from there nothing would move."""

    preference: Array
    start: Array

    @property
    def size(self) -> int:
        """n, the number of responses."""
        return len(self.start)


def eta_of(n: int, rounds: float) -> float:
    """Eta = sqrt(8 ln n / T)."""
    return math.sqrt(8 * math.log(n) / rounds)


def rates(preference: Array, policy: Array) -> Array:
    """P(y ≻ pi) = sum_y' pi(y') P[y, y'] of each response; its mean under pi is 1/2."""
    return preference @ policy


def closed_form(preference: Array, log_pi: Array, eta: float) -> Array:
    """Log pi_{t+1} = log pi_t + eta P(y ≻ pi_t) - log of the sum of these."""
    raised = log_pi + eta * rates(preference, np.exp(log_pi))
    return raised - np.logaddexp.reduce(raised)


def duality_gap(preference: Array, policy: Array) -> float:
    """max_y P(y ≻ pi) - min_y P(pi ≻ y) = 2 max_y P(y ≻ pi) - 1; 0 at an equilibrium, at most 1."""
    return float(2 * rates(preference, policy).max() - 1)


def gap_bound(start: Array, eta: float, rounds: int) -> float:
    """2 (D / (eta T) + eta / 8), D = max_y log 1/pi_0(y): twice the regret bound of multiplicative weights."""
    return float(2 * (np.log(1 / start).max() / (eta * rounds) + eta / 8))


def multiplicities(policy: Array, most: int) -> list[int]:
    """How often each response is dealt: every one at least once, the total even, at most `most` and half of it or more.

    Of these totals the one whose shares are the nearest to pi(y), by the largest relative error of those responses
    that pi gives more than half a place: a rarer one is dealt once, which is more than its due.
    """
    tried = [_even(np.maximum(1, np.rint(policy * total)).astype(int)) for total in range(most // 2, most - 1)]
    due = policy > 1 / (2 * most)
    return min(tried, key=lambda dealt: float(np.abs(np.divide(dealt, sum(dealt)) / policy - 1)[due].max()))


def _even(counts: NDArray[np.int_]) -> list[int]:
    counts[counts.argmax()] += counts.sum() % 2
    return counts.tolist()


def violations(game: Game, policies: Sequence[Array], rounds: int) -> dict[str, str]:
    """What is wrong with self-play of T = `rounds` rounds; policies: log pi_0 ... log pi_T. Empty: nothing.

    closed form: a step is further than C eta^3 from it; gap: that of the average of all policies but the last is not
    below its bound.
    """
    found = {}
    eta = eta_of(game.size, rounds)
    off, allowed = deviation(game, policies, rounds), LARGEST * eta**3
    if not off <= allowed:
        found["closed form"] = f"a step is {off:.2g} nats from the closed form, {allowed:.2g} are allowed"
    gap, bound = duality_gap(game.preference, average(policies)), gap_bound(game.start, eta, rounds)
    if not gap < bound:
        found["gap"] = f"the average policy's duality gap is {gap:.3f}, it must be below {bound:.3f}"
    return found


def deviation(game: Game, policies: Sequence[Array], rounds: float) -> float:
    """Largest |log pi_{t+1} - closed form of pi_t| over rounds and responses, in nats."""
    eta = eta_of(game.size, rounds)
    steps = itertools.pairwise(policies)
    return float(np.max([np.abs(new - closed_form(game.preference, old, eta)) for old, new in steps]))


def average(policies: Sequence[Array]) -> Array:
    """Mean of pi_0 ... pi_{T-1}."""
    mean: Array = np.exp(policies[:-1]).mean(axis=0)
    return mean
