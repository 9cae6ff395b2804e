"""Time, throughput and cost of every step: as bars by iteration, and as a table with its total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparring.pipeline.report.html.blocks import bars
from sparring.pipeline.report.html.curves import charts
from sparring.pipeline.report.html.gather import Story
from sparring.pipeline.report.html.markup import Html, join, table, tag
from sparring.pipeline.report.html.tables import steps_of
from sparring.pipeline.store.manifest import Manifest

PARTS = {
    "prompts": "sample",
    "sample": "sample",
    "score": "annotate",
    "embed": "annotate",
    "pairs": "annotate",
    "calibrate": "annotate",
    "reference": "train",
    "reference_base": "train",
    "train": "train",
    "sample_base": "evaluate",
    "sample_heldout": "evaluate",
    "evaluate": "evaluate",
    "crossplay": "evaluate",
}
"""Label of a step -> the part of an iteration whose time it takes."""
KINDS = ("sample", "annotate", "train", "evaluate", "other")
SHOWN = ("seconds", "rows", "tokens", "tokens/s", "duels", "duels/s", "attempts", "GPU-hours", "$")
"""Columns; one that no step has anything in is left out."""
COUNTED = "Seconds are those of a step's work: starts of engines and waiting are not among them"


def cost(story: Story) -> Html:
    """Return seconds by part as bars, what it came to in a line, and every step in a table."""
    rows = [(f"iter {t}" if t else "before", seconds(steps)) for t, steps in story.every.items()]
    there = [(name, values) for name, values in rows if values]
    kinds = [kind for kind in KINDS if any(kind in values for _, values in there)]
    every = [(label, t, figures(manifest, story.usd_per_hour)) for t, label, manifest in steps_of(story)]
    if not every:
        return Html("")
    sums = total([found for _, _, found in every])
    drawn = bars("Seconds by iteration", "s", there, kinds)
    return join([charts([drawn]), tag("p", _told(sums, story.usd_per_hour)), _table(every, sums)])


def seconds(steps: Mapping[str, Manifest]) -> dict[str, float]:
    """Return part of an iteration -> seconds; an artifact with two labels is counted once."""
    found: dict[str, float] = {}
    seen = set()
    for label, manifest in steps.items():
        if manifest.fingerprint not in seen:
            judged = label.startswith(("score_", "logprobs_")) or "best" in label
            kind = "evaluate" if judged else PARTS.get(label, "other")
            found[kind] = found.get(kind, 0.0) + manifest.seconds
        seen.add(manifest.fingerprint)
    return found


def figures(manifest: Manifest, usd_per_hour: float | None) -> dict[str, float]:
    """Return column -> number of a step, of those that it has. All GPUs of its machines are held while it works."""
    tokens, duels = (manifest.stats.get(name) or None for name in ("tokens", "duels"))
    hours, gpus = manifest.seconds / 3600, manifest.made_with.get("hardware", {}).get("gpus")
    found = {
        "seconds": manifest.seconds,
        "rows": manifest.rows["out"],
        "tokens": tokens,
        "tokens/s": tokens / manifest.seconds if tokens and manifest.seconds else None,
        "duels": duels,
        "duels/s": duels / manifest.seconds if duels and manifest.seconds else None,
        "attempts": len(manifest.attempts),
        "GPU-hours": hours * gpus if gpus else None,
        "$": None if usd_per_hour is None else hours * usd_per_hour,
    }
    return {name: value for name, value in found.items() if value is not None}


def total(every: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums of what can be added up."""
    added = ("seconds", "tokens", "duels", "GPU-hours", "$")
    return {name: sum(found.get(name, 0.0) for found in every) for name in added if any(name in one for one in every)}


def _told(sums: Mapping[str, float], usd_per_hour: float | None) -> str:
    hours = sums.get("seconds", 0.0) / 3600
    parts = [f"{hours:,.2f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"]
    if "GPU-hours" in sums:
        parts.append(f"{sums['GPU-hours']:,.1f} GPU-hours")
    if "$" in sums:
        parts.append(f"${sums['$']:,.2f} at ${usd_per_hour:g} an hour")
    return f"In all {', '.join(parts)}. {COUNTED}; of steps that ran side by side each one counts."


def _table(every: Sequence[tuple[str, int, Mapping[str, float]]], sums: Mapping[str, float]) -> Html:
    shown = [name for name in SHOWN if any(name in found for _, _, found in every)]
    rows = [[label, str(t), *(_written(name, found) for name in shown)] for label, t, found in every]
    rows.append(["total", "", *(_written(name, sums) for name in shown)])
    whole = table(("step", "iteration", *shown), rows, "numbers total")
    return tag("details", tag("summary", "Every step"), whole)


def _written(name: str, found: Mapping[str, float]) -> str:
    digits = {"seconds": 1, "GPU-hours": 2, "$": 2}.get(name, 0)
    return f"{found[name]:,.{digits}f}" if name in found else ""
