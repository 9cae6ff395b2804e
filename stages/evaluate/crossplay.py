"""The step `crossplay`: every policy so far against every other one, by both judges; is the game cyclic?

One row per judge and two policies, the later one first. The intervals are those of `evaluate`, a bootstrap over
prompts, the same draws for all. A prompt counts where both policies answered it, and not for a judge that was trained
on it. Where no prompt is left, the two did not play.

The formulas are pure numpy, float64; the equilibrium is by scipy's linprog. W: (n, n) float64, W[i, j] = P(policy i
beats policy j); W + W^T = 1, W[i, i] = 1/2; NaN where the two did not play. The game is symmetric and zero-sum in
W - 1/2, so its value is 1/2: no policy of the set beats an equilibrium. All of this is about the set alone: a policy
outside it may exploit what none of the set can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparring.stages.evaluate.bootstrap import ROUNDING, paired_bootstrap
from sparring.stages.evaluate.config import EvaluateSettings
from sparring.stages.evaluate.stage import JUDGES, win_rates, with_interval
from sparring.stages.plain import null_if_nan
from sparring.stages.step import Job, Part, Shard

Array = NDArray[np.float64]
Floats = Sequence[float] | Array
Mask = NDArray[np.bool_]


CROSSPLAY_SCHEMA = pa.schema(
    [
        ("judge", pa.string()),
        ("policy", pa.int32()),
        ("opponent", pa.int32()),
        ("win_rate", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n", pa.int32()),
        ("informative", pa.bool_()),
    ]
)


class Crossplay:
    """Compares all pairs of policies."""

    def __init__(self, job: Job[EvaluateSettings]) -> None:
        self.job = job

    def __call__(self, shard: Shard) -> Part:
        names = sorted(self.job.inputs)
        by_prompt = [win_rates(self.job.inputs[name]) for name in names]
        ids = list(dict.fromkeys(i for rates in by_prompt for i in rates))
        values = np.array([[rates.get(i, np.nan) for rates in by_prompt] for i in ids]).reshape(len(ids), len(names))
        evaluate, seed = self.job.settings.evaluate, self.job.settings.seed
        means, lows, highs = paired_bootstrap(values, evaluate.resamples, evaluate.confidence, seed)
        counts = (~np.isnan(values)).sum(axis=0)
        rows = [
            {
                "judge": judge,
                "policy": int(policy),
                "opponent": int(opponent),
                "n": int(counts[c]),
                **with_interval(means[c], lows[c], highs[c]),
            }
            for c, (judge, policy, opponent) in enumerate(name.split("_") for name in names)
        ]
        return Part(table=pa.Table.from_pylist(rows, schema=CROSSPLAY_SCHEMA), rows_in=len(rows))


def finish(job: Job[EvaluateSettings], tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise: for each judge the matrix and what it makes of the game; null where two policies did not play."""
    rows = [row for table in tables for row in table.to_pylist()]
    return {
        "policies": 1 + max(row["policy"] for row in rows),
        "resamples": job.settings.evaluate.resamples,
        "confidence": job.settings.evaluate.confidence,
        "judges": {judge: game([row for row in rows if row["judge"] == judge]) for judge in JUDGES},
    }


def game(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what one judge's rows imply: W with its intervals, cycles, exploitability, an equilibrium of the set.

    `cycle` is by point estimate; in `cycle_beyond_doubt` every interval lies above 1/2. `average` is the uniform mix.
    """

    def plain(values: Array) -> list[list[float | None]]:
        return [[null_if_nan(value) for value in row] for row in values]

    n, played = 1 + max(row["policy"] for row in rows), [(row["policy"], row["opponent"]) for row in rows]
    mean, low, high = (np.array([row[name] for row in rows], dtype=np.float64) for name in ("win_rate", "low", "high"))
    wins = matrix(n, played, mean, mean)
    lows = matrix(n, played, low, high)
    exploited, by = exploitability(wins)
    mixture = equilibrium(wins)
    return {
        "win_rates": plain(wins),
        "low": plain(lows),
        "high": plain(matrix(n, played, high, low)),
        "cycle": cycle(beats(wins)),
        "cycle_beyond_doubt": cycle(beats(lows)),
        "exploitability": exploited.tolist(),
        "exploited_by": by.tolist(),
        "average_exploitability": null_if_nan(mixed_exploitability(wins, np.full(n, 1 / n))),
        "mixture": None if mixture is None else mixture.tolist(),
        "mixture_exploitability": None if mixture is None else null_if_nan(mixed_exploitability(wins, mixture)),
        "duality_gap": None if mixture is None else duality_gap(wins, mixture),
    }


def matrix(n: int, played: Sequence[tuple[int, int]], rates: Floats, mirrored: Floats) -> Array:
    """Return (n, n) with rates[c] at played[c] = (i, j) and 1 - mirrored[c] at (j, i), 1/2 on the diagonal, else NaN.

    W: both are the estimates. The low ends of W: rates are the low ends and mirrored the high ones, since an interval
    is mirrored at 1/2. The high ends of W: the other way round.
    """
    full = np.full((n, n), np.nan)
    np.fill_diagonal(full, 0.5)
    for (i, j), rate, opposite in zip(played, rates, mirrored, strict=True):
        full[i, j], full[j, i] = rate, 1.0 - opposite
    return full


def beats(values: Array) -> Mask:
    """Who beats whom beyond rounding: values > 1/2; of W by point estimate, of its low ends beyond doubt."""
    return np.nan_to_num(values, nan=0.0) > 0.5 + ROUNDING


def cycle(beaten: Mask) -> list[int]:
    """Return the shortest round of policies of which each beats the next and the last the first; [] without one.

    beaten: (n, n), [i, j] = i beats j. Each interval holds with its own confidence, not all of them at once.
    """
    rounds = []
    for start in range(len(beaten)):  # the shortest through each policy, by breadth-first search
        before: dict[int, int] = {}
        queue = deque([start])
        while queue:
            i = queue.popleft()
            if beaten[i, start]:
                path = [i]
                while path[-1] != start:
                    path.append(before[path[-1]])
                rounds.append(path[::-1])
                break
            for j in np.flatnonzero(beaten[i]).tolist():
                if j not in before:
                    before[j] = i
                    queue.append(j)
    return min(rounds, key=len, default=[])


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
    solution = linprog(
        c=[*[0.0] * n, -1.0],
        A_ub=np.hstack([-wins.T, np.ones((n, 1))]),
        b_ub=np.zeros(n),
        A_eq=[[*[1.0] * n, 0.0]],
        b_eq=[1.0],
        bounds=[*[(0.0, None)] * n, (None, None)],
        method="highs",
    )
    mixture = np.clip(solution.x[:n], 0.0, None)
    return mixture / mixture.sum()
