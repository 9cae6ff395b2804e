"""The figures of the table as JSON: the same rows, their values unrounded.

{"arms": [{"run", "arm", "iterations": {"1": {"pairs kept": 64, "oracle: vs base": {"win_rate", "low", …}, …}},
           "notes": {"1": [line]}, "judges": [line],
           "suites": {"rows": {name: {"base" or "3": text}}, "notes": [line]},
           "contamination": [{"suite", "n", "rows", "overlapping", "prompts", "of"}]}]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.report.arms import Arm
from pipeline.report.judging import worth_of_judges
from pipeline.report.published import NAMES
from pipeline.report.table import FIGURES, suites_of


def as_json(arms: Sequence[Arm]) -> str:
    """Return the figures of every arm; one that an iteration does not have is left out."""
    return json.dumps({"arms": [_arm(arm) for arm in arms]}, indent=1, allow_nan=False) + "\n"


def _arm(arm: Arm) -> dict[str, Any]:
    values = {
        str(t): {name: value for name, figure in FIGURES if (value := figure.value(steps)) is not None}
        for t, steps in arm.done.items()
    }
    notes = {str(t): lines for t, lines in arm.said.items() if lines}
    judges = worth_of_judges(next(reversed(arm.done.values()), {}))
    suites = suites_of(arm.folder, arm.done)
    rows = {name: {NAMES.get(t, str(t)): text for t, text in cells.items()} for name, cells in suites.rows.items()}
    return {
        "run": arm.run,
        "arm": arm.name,
        "iterations": _finite(values),
        "notes": notes,
        "judges": judges,
        "suites": {"title": suites.title, "rows": rows, "notes": list(suites.notes)},
        "contamination": [asdict(one) for one in suites.overlaps],
    }


def _finite(value: Any) -> Any:
    """Return the value with null in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
