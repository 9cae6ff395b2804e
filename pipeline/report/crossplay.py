"""Who beats whom: the policies of a run against each other, for each judge, and what kind of game that is.

The step `crossplay` states win rates with intervals, cycles and an equilibrium. Without it, the scores of held-out
responses say something: `score_<judge>_<opponent>` of iteration t has policy t against `previous`, `base`, or `vs01`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from sparring.pipeline.report.judging import JUDGES
from sparring.pipeline.runs.run_history import RunHistory, Steps
from sparring.stages.evaluate.stage import win_rates

Game = Mapping[str, Any]
"""What the step `crossplay` says of one judge: win_rates, low, high, cycle, exploitability, mixture …"""
Cells = dict[tuple[int, int], float]
"""(policy, other policy) -> mean win rate over the held-out prompts; 0 is the base."""


def games(iterations: Mapping[int, Steps]) -> Mapping[str, Game]:
    """Return judge -> game of the latest iteration that has them, {} without any."""
    made = [steps["crossplay"].summary for _, steps in sorted(iterations.items()) if "crossplay" in steps]
    return made[-1]["judges"] if made else {}


def cell(game: Game, i: int, j: int) -> str:
    """Return a win rate, marked where its interval contains 1/2; nothing where the two did not play."""
    value, low, high = (game[name][i][j] for name in ("win_rates", "low", "high"))
    if i == j or value is None:
        return "" if i != j else "·"
    return f"{'~' if low <= 0.5 <= high else ''}{value:.3f}"


def pi(i: int) -> str:
    """Return the symbol of a policy: π_0 is the base."""
    return f"π_{i}"


def sentences(game: Game, name: Callable[[int], str] = pi) -> list[str]:
    """Return whether the game is cyclic, how exploitable its policies are, and an equilibrium of the set."""
    lines = ["not cyclic by point estimates: no round of policies in which each beats the next"]
    for key, how in (("cycle", "by point estimates alone"), ("cycle_beyond_doubt", "every interval above 1/2")):
        if game[key]:
            lines = [f"cyclic, {how}: {' beats '.join(name(i) for i in [*game[key], game[key][0]])}"]
    exploited = [
        f"{name(i)}: {most:.3f} (by {name(by)})" if most >= 0.0005 else f"{name(i)}: 0"
        for i, (most, by) in enumerate(zip(game["exploitability"], game["exploited_by"], strict=True))
    ]
    measured = "exploitability within the set, by point estimates (win rate of the best answer - 1/2)"
    lines.append(f"{measured}: {', '.join(exploited)}")
    if game["mixture"] is not None:
        mixture = ", ".join(f"{name(i)}: {x:.2f}" for i, x in enumerate(game["mixture"]) if x > 0.005)
        own, even = abs(game["mixture_exploitability"]), game["average_exploitability"]
        lines.append(f"an equilibrium of the set, by point estimates: {mixture}")
        lines.append(f"exploitability of it {own:.3f}, of the even mixture {even:.3f}")
    return lines


def intervals(game: Game) -> dict[tuple[int, int], tuple[float, float]]:
    """Return (policy, other policy) -> interval of its win rate, of those that played each other."""
    n = len(game["win_rates"])
    played = ((i, j) for i in range(n) for j in range(n) if i != j and game["win_rates"][i][j] is not None)
    return {(i, j): (game["low"][i][j], game["high"][i][j]) for i, j in played}


def flat(game: Game) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a game under names of their own: `3_vs_1/win_rate`, `exploitability/3`, `cyclic`."""
    for key in ("win_rates", "low", "high"):
        for i, row in enumerate(game[key]):
            yield from ((f"{i}_vs_{j}/{key.removesuffix('s')}", x) for j, x in enumerate(row[:i]) if x is not None)
    yield "cyclic", float(bool(game["cycle"]))
    yield "cyclic_beyond_doubt", float(bool(game["cycle_beyond_doubt"]))
    for key in ("exploitability", "mixture"):
        yield from ((f"{key}/{i}", x) for i, x in enumerate(game[key] or ()))
    for key in ("average_exploitability", "mixture_exploitability", "duality_gap"):
        if game[key] is not None:
            yield key, game[key]


def scored(arm: RunHistory) -> dict[str, Cells]:
    """Return judge -> cells from the scores of held-out responses, of the judges that have scored anything."""
    by_judge: dict[str, Cells] = {judge: {} for judge in JUDGES}
    for judge, cells in by_judge.items():
        for t, steps in arm.steps.items():
            for label in steps:
                other = opponent(label, judge, t)
                scores = arm.artifact(t, label) if other is not None and (t, other) not in cells else None
                known = [rate for rate in win_rates(scores).values() if not math.isnan(rate)] if scores else []
                if known and other is not None:  # NaN: a prompt that trained the judge
                    rate = float(np.mean(known))
                    cells |= {(t, other): rate, (other, t): 1.0 - rate}  # the same duels seen from the other side
    return {judge: cells for judge, cells in by_judge.items() if cells}


def opponent(label: str, judge: str, t: int) -> int | None:
    """Return the policy that policy t met in the step `label`; None where it is not such a step of this judge."""
    kind, _, name = label.partition(f"_{judge}_")
    if kind != "score" or not name:
        return None
    number = name.removeprefix("vs")
    return {"base": 0, "previous": t - 1}.get(name, int(number) if number.isdecimal() else None)
