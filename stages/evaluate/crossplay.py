"""What a set of policies is as a game, from who beats whom. Pure numpy, float64; the equilibrium by scipy's linprog.

W: (n, n) float64, W[i, j] = P(policy i beats policy j); W + W^T = 1, W[i, i] = 1/2; NaN where the two did not play.
The game is symmetric and zero-sum in W - 1/2, so its value is 1/2: no policy of the set beats an equilibrium.
All of this is about the set alone: a policy outside it may exploit what nobody here can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparring.stages.evaluate.bootstrap import ROUNDING

Array = NDArray[np.float64]
Floats = Sequence[float] | Array
Mask = NDArray[np.bool_]


def matrix(n: int, played: Sequence[tuple[int, int]], there: Floats, back: Floats) -> Array:
    """Return (n, n) with there[c] at played[c] = (i, j) and 1 - back[c] at (j, i), 1/2 on the diagonal, else NaN.

    W of its estimates twice; the low ends of W of (low, high), since an interval is mirrored at 1/2; the high ones of
    (high, low).
    """
    full = np.full((n, n), np.nan)
    np.fill_diagonal(full, 0.5)
    for (i, j), forth, other in zip(played, there, back, strict=True):
        full[i, j], full[j, i] = forth, 1.0 - other
    return full


def beats(values: Array) -> Mask:
    """Who beats whom beyond rounding: values > 1/2; of W by point estimate, of its low ends beyond doubt."""
    return np.nan_to_num(values, nan=0.0) > 0.5 + ROUNDING


def cycle(beaten: Mask) -> list[int]:
    """Return the shortest round of policies of which each beats the next and the last the first; [] without one.

    beaten: (n, n), [i, j] = i beats j. Each interval holds with its own confidence, not all of them at once.
    """
    rounds = [found for start in range(len(beaten)) if (found := _round(beaten, start))]
    return min(rounds, key=len, default=[])


def _round(beaten: Mask, start: int) -> list[int]:
    """Return the shortest cycle through `start`, by breadth-first search."""
    before: dict[int, int] = {}
    queue = deque([start])
    while queue:
        i = queue.popleft()
        for j in np.flatnonzero(beaten[i]).tolist():
            if j == start:
                return _path(before, start, i)
            if j not in before:
                before[j] = i
                queue.append(j)
    return []


def _path(before: dict[int, int], start: int, end: int) -> list[int]:
    path = [end]
    while path[-1] != start:
        path.append(before[path[-1]])
    return path[::-1]


def exploitability(wins: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return e (n,), e_i = max_j W[j, i] - 1/2 over those that i played, itself too, and the j of each.

    Never below 0. A maximum of estimates: biased upward, so read it with the interval of its entry.
    """
    against = np.where(np.isnan(wins), -np.inf, wins)
    return against.max(axis=0) - 0.5, against.argmax(axis=0)


def mixed_exploitability(wins: Array, mixture: Array) -> float:
    """max_j sum_i x_i W[j, i] - 1/2 of the mixture x (n,): what the best answer of the set wins beyond 1/2."""
    return float((wins @ mixture).max()) - 0.5


def duality_gap(wins: Array, mixture: Array) -> float:
    """max_j (W x)_j - min_j (x^T W)_j of x against itself: twice its exploitability; 0 at an equilibrium."""
    return float((wins @ mixture).max() - (mixture @ wins).min())


def equilibrium(wins: Array) -> Array | None:
    """Return a mixture x (n,) that no policy of the set beats; None where some did not play each other.

    max v over x >= 0, sum x = 1, with sum_i x_i W[i, j] >= v for all j, by linear programming (HiGHS). Where there are
    several equilibria it is one of them.
    """
    from scipy.optimize import linprog

    n = len(wins)
    if np.isnan(wins).any():
        return None
    found = linprog(
        c=[*[0.0] * n, -1.0],
        A_ub=np.hstack([-wins.T, np.ones((n, 1))]),
        b_ub=np.zeros(n),
        A_eq=[[*[1.0] * n, 0.0]],
        b_eq=[1.0],
        bounds=[*[(0.0, None)] * n, (None, None)],
        method="highs",
    )
    mixture = np.clip(found.x[:n], 0.0, None)
    return mixture / mixture.sum()
