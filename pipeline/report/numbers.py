"""The figures of the table as JSON: the same rows, their values unrounded.

{"arms": [{"run", "arm", "label", "answer": {"iteration", "headline", "tone": "good", "sentences": [line]},
           "iterations": {"1": {"pairs kept": 64, "oracle: vs base": {"win_rate", "low", …}, …}},
           "panel": {"1": {"h_w": {"value", "unit", "words", "step", "key"}, …}},
           "crossplay": {"2": {"policies", "confidence", "judges": {"oracle": {"win_rates", "low", "cycle", …}}}},
           "warnings": {"1": [{"rule": "longer", "threshold", "text"}]},
           "notes": {"1": [line]}, "judges": [line],
           "suites": {"rows": {name: {"base" or "3": text}}, "notes": [line]},
           "contamination": [{"suite", "n", "rows", "overlapping", "prompts", "of"}]}],
 "comparisons": [{"arm", "baseline", "judge", "iteration", "difference", "low", "high", "prompts", "detectable",
                  "confidence", "finding": "better", "why": null, "notes": [line]}]}

Arms are compared under their labels; what is not compared has nulls, and `why`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sparring.pipeline.diagnostics.panel import Panel
from sparring.pipeline.report.answer import answer
from sparring.pipeline.report.compare import Difference
from sparring.pipeline.report.judging import worth_of_judges
from sparring.pipeline.report.panel import groups
from sparring.pipeline.report.published import NAMES
from sparring.pipeline.report.table import FIGURES, said, suites_of, with_panels
from sparring.pipeline.run_history import RunHistory, labels


def as_json(arms: Sequence[RunHistory], found: Sequence[Difference] = ()) -> str:
    """Return the figures of every arm, and their comparison; one that an iteration does not have is left out."""
    shown = [_arm(arm, label) for arm, label in zip(arms, labels(arms), strict=True)]
    content = {"arms": shown, "comparisons": [_finite(_comparison(one)) for one in found]}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _comparison(one: Difference) -> dict[str, Any]:
    return {
        "arm": one.arm,
        "baseline": one.baseline,
        "judge": one.judge,
        "iteration": one.iteration or None,
        "difference": one.estimate.mean,
        "low": one.estimate.low,
        "high": one.estimate.high,
        "prompts": one.estimate.n,
        "detectable": one.detectable,
        "confidence": one.confidence,
        "finding": None if one.why else one.finding,
        "why": one.why or None,
        "notes": list(one.notes),
    }


def _arm(arm: RunHistory, label: str) -> dict[str, Any]:
    values = {
        str(t): {name: value for name, figure in FIGURES if (value := figure.find(steps, panel)) is not None}
        for t, steps, panel in with_panels(arm.done, arm.panels)
    }
    notes = {str(t): lines for t, lines in said(arm).items() if lines}
    judges = worth_of_judges(next(reversed(arm.done.values()), {}))
    suites = suites_of(arm)
    rows = {name: {NAMES.get(t, str(t)): text for t, text in cells.items()} for name, cells in suites.rows.items()}
    return {
        "run": arm.run,
        "arm": arm.arm,
        "label": label,
        "answer": _answer(arm),
        "iterations": _finite(values),
        "panel": {str(one.iteration): _finite(_panel(one)) for one in arm.panels},
        "crossplay": {str(t): _finite(m["crossplay"].summary) for t, m in arm.done.items() if "crossplay" in m},
        "warnings": _warnings(arm),
        "notes": notes,
        "judges": judges,
        "suites": {"title": suites.title, "rows": rows, "notes": list(suites.notes)},
        "contamination": [asdict(one) for one in suites.overlaps],
    }


def _answer(arm: RunHistory) -> dict[str, Any]:
    """Return what the page says first: is the last evaluated policy better than the base?"""
    told = answer(arm.done)
    head = {"iteration": told.t or None, "headline": told.headline, "tone": told.tone}
    return {**head, "sentences": list(told.sentences)}


def _panel(panel: Panel) -> dict[str, Any]:
    """Return every figure of an iteration, what it is, and where it came from."""
    words = {row.name: row.words for _, rows in groups([panel]) for row in rows}
    return {
        name: {"value": one.value, "unit": one.unit, "words": words.get(name, ""), "step": one.step, "key": one.key}
        for name, one in panel.figures.items()
    }


def _warnings(arm: RunHistory) -> dict[str, list[dict[str, Any]]]:
    """Return the rules of `diagnostics` that fire in each iteration, of those in which any does."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in arm.fired:
        found.setdefault(str(one.iteration), []).append(
            {"rule": one.rule, "threshold": one.threshold, "text": one.text}
        )
    return found


def _finite(value: Any) -> Any:
    """Return the value with null in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
