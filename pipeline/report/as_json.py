"""A report as JSON: its values are not rounded.

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

Arms are compared under their labels; what is not compared has nulls, and `why`. A figure that an iteration does not
have is left out.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from sparring.pipeline.report.comparison import Comparison
from sparring.pipeline.report.data import ArmReport, ReportData
from sparring.pipeline.report.suites import NAMES


def as_json(report: ReportData) -> str:
    """Return the report's text."""
    content = {"arms": list(map(_arm, report.arms)), "comparisons": list(map(_comparison, report.comparisons))}
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _arm(arm: ArmReport) -> dict[str, Any]:
    warnings: dict[str, list[dict[str, Any]]] = {}
    for one in arm.warnings:
        fired = {"rule": one.rule, "threshold": one.threshold, "text": one.text}
        warnings.setdefault(str(one.iteration), []).append(fired)
    played = {t: steps["crossplay"].summary for t, steps in arm.history.iterations.items() if "crossplay" in steps}
    return {
        "run": arm.history.run,
        "arm": arm.history.arm,
        "label": arm.label,
        "answer": {
            "iteration": arm.answer.iteration or None,
            "headline": arm.answer.headline,
            "tone": arm.answer.tone,
            "sentences": list(arm.answer.sentences),
        },
        "iterations": {str(t): {one.name: one.value for one in of.values()} for t, of in arm.figures.items()},
        "panel": {
            str(t): {
                one.name: {
                    "value": one.value, "unit": one.unit, "words": one.meaning, "step": one.step, "key": one.key
                }
                for one in figures.values()
            }
            for t, figures in arm.panel.items()
        },
        "crossplay": {str(t): summary for t, summary in played.items()},
        "warnings": warnings,
        "notes": {str(t): lines for t, lines in arm.remarks().items() if lines},
        "judges": list(arm.judges),
        "suites": {
            "title": arm.suites.title,
            "rows": {
                name: {NAMES.get(t, str(t)): text for t, text in cells.items()}
                for name, cells in arm.suites.rows.items()
            },
            "notes": list(arm.suites.notes),
        },
        "contamination": [asdict(one) for one in arm.suites.overlaps],
    }  # fmt: skip


def _comparison(one: Comparison) -> dict[str, Any]:
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


def _finite(value: Any) -> Any:
    """Return the value with null in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
