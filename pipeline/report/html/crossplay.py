"""Who beats whom: the win rates of the policies of a run against each other, from the scores of held-out responses.

A step `score_<judge>_<opponent>` of iteration t holds policy t against another: `previous`, `base`, or `vs01`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from sparring.pipeline.run_history import RunHistory
from sparring.stages.evaluate.stage import JUDGES, win_rates

Cells = dict[tuple[int, int], float]
"""(policy, other policy) -> mean win rate over the held-out prompts; 0 is the base."""


def crossplay(arm: RunHistory) -> dict[str, Cells]:
    """Return judge -> cells, of the judges that have scored anything."""
    found = {judge: _cells(arm, judge) for judge in JUDGES}
    return {judge: cells for judge, cells in found.items() if cells}


def _cells(arm: RunHistory, judge: str) -> Cells:
    cells: Cells = {}
    for t, steps in arm.every.items():
        for label in steps:
            other = opponent(label, judge, t)
            scores = arm.opened(t, label) if other is not None and (t, other) not in cells else None
            if scores and other is not None:
                cells |= both(t, other, mean(win_rates(scores)))
    return cells


def opponent(label: str, judge: str, t: int) -> int | None:
    """Return the policy that policy t met in the step `label`; None where it is not such a step of this judge."""
    kind, _, name = label.partition(f"_{judge}_")
    if kind != "score" or not name:
        return None
    number = name.removeprefix("vs")
    return {"base": 0, "previous": t - 1}.get(name, int(number) if number.isdecimal() else None)


def both(left: int, right: int, rate: float) -> Cells:
    """Return the cell and its mirror, 1 - rate, which is the same duels seen from the other side; none for NaN."""
    return {} if math.isnan(rate) else {(left, right): rate, (right, left): 1.0 - rate}


def mean(rates: Mapping[str, float]) -> float:
    """Return the mean win rate over prompts, without those the judge was trained on (NaN); NaN without any."""
    known = [rate for rate in rates.values() if not math.isnan(rate)]
    return float(np.mean(known)) if known else math.nan
