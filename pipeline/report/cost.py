"""Time, throughput and cost of every step of a run, from its manifests, beside what the plan said it would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.runs.timeline import Timeline, timeline_of
from sparring.pipeline.store.manifest import Manifest

KINDS = {
    "sample": ("prompts", "sample"),
    "annotate": ("score", "embed", "pairs", "calibrate"),
    "train": ("reference", "reference_base", "train"),
    "evaluate": ("sample_base", "sample_heldout", "evaluate", "crossplay"),
    "other": (),
}
"""Part of an iteration -> labels of the steps whose time it takes."""
COLUMNS = {
    "planned s": 1, "spent s": 1,
    "seconds": 1, "rows": 0, "tokens": 0, "tokens/s": 0, "duels": 0, "duels/s": 0, "attempts": 0, "GPU-hours": 2, "$": 2
}  # fmt: skip
"""Column -> digits; one that no step has anything in is left out."""
SUMMED = ("planned s", "spent s", "seconds", "tokens", "duels", "GPU-hours", "$")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the steps of a run took."""

    by_part: Sequence[tuple[str, Mapping[str, float]]]
    """`iter 1` -> part of it -> seconds."""
    steps: Sequence[tuple[str, int, Mapping[str, float]]]
    """Label, iteration and column -> number of each step."""
    total: Mapping[str, float]
    sentence: str
    timeline: Timeline | None
    """None where the events are lost, or all steps were made by other runs."""

    @property
    def parts(self) -> list[str]:
        """The parts that some iteration has, in their order."""
        return [kind for kind in KINDS if any(kind in seconds for _, seconds in self.by_part)]

    @property
    def timeline_parts(self) -> list[str]:
        """Likewise of the timeline."""
        found = {part_of(span.label) for span in self.timeline.spans} if self.timeline else set()
        return [kind for kind in KINDS if kind in found]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return heads and rows, the total last."""
        heads = [name for name in COLUMNS if any(name in numbers for _, _, numbers in self.steps)]
        rows = [(label, str(t), numbers) for label, t, numbers in self.steps]
        return ["step", "iteration", *heads], [
            [label, t, *(f"{numbers[name]:,.{COLUMNS[name]}f}" if name in numbers else "" for name in heads)]
            for label, t, numbers in [*rows, ("total", "", self.total)]
        ]

    def minutes(self) -> list[list[str]]:
        """Return the minutes that each step was to take and took, those of all iterations in one row, the sum last."""
        sums: dict[str, list[float]] = {}
        for label, _, one in self.steps:
            for name in (label, "all") if "planned s" in one else ():
                before, after = sums.get(name, (0.0, 0.0))
                sums[name] = [before + one["planned s"] / 60, after + one["spent s"] / 60]
        ordered = sorted(sums.items(), key=lambda row: row[0] == "all")
        return [[name, f"{before:.1f}", f"{after:.1f}"] for name, (before, after) in ordered if before + after >= 0.1]


def cost_of(arm: RunHistory) -> Cost | None:
    """Return what the steps of a run took, None where none is made."""
    hardware = arm.settings.get("hardware")
    price = hardware.get("usd_per_hour") if isinstance(hardware, dict) else None
    price = float(price) if isinstance(price, int | float) else None
    made, planned = timeline_of(arm), arm.record.planned_s
    spent = {(span.iteration, span.label): span.end - span.begin for span in made.spans} if made else {}
    steps = [
        (label, t, {**_beside(planned.get(t, {}).get(label), spent.get((t, label))), **numbers(manifest, price)})
        for t, label, manifest in arm.artifacts()
    ]
    if not steps:
        return None
    by_part = [(f"iter {t}" if t else "before", seconds(one)) for t, one in arm.steps.items()]
    sums = total([one for _, _, one in steps])
    hours = sums["seconds"] / 3600
    parts = [f"{hours:,.2f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"]
    parts += [f"{sums['GPU-hours']:,.1f} GPU-hours"] if "GPU-hours" in sums else []
    parts += [f"${sums['$']:,.2f} at ${price:g} an hour"] if "$" in sums else []
    return Cost(
        by_part=[(name, one) for name, one in by_part if one],
        steps=steps,
        total=sums,
        sentence=f"In all {', '.join(parts)}. Seconds are those of a step's work: starts of engines and waiting are "
        "not among them; of steps that ran side by side each one counts. "
        "Planned and spent, from the start of a step to its end, are given of steps that this run has made.",
        timeline=made,
    )


def _beside(planned: float | None, spent: float | None) -> dict[str, float]:
    """Return the columns of planned and spent seconds, of a step that was both."""
    return {"planned s": planned, "spent s": spent} if planned is not None and spent is not None else {}


def part_of(label: str) -> str:
    """Return the part of an iteration that a step belongs to."""
    if label.startswith(("score_", "logprobs_")) or "best" in label:
        return "evaluate"
    return next((kind for kind, labels in KINDS.items() if label in labels), "other")


def stretches(made: Timeline) -> list[tuple[str, list[tuple[str, str, float, float]]]]:
    """Return `iter 1` -> its steps as (part, label, begin, end), for a chart."""
    rows: dict[int, list[tuple[str, str, float, float]]] = {}
    for span in made.spans:
        rows.setdefault(span.iteration, []).append((part_of(span.label), span.label, span.begin, span.end))
    return [(f"iter {t}" if t else "before", rows[t]) for t in sorted(rows)]


def seconds(steps: Mapping[str, Manifest]) -> dict[str, float]:
    """Return part of an iteration -> seconds; an artifact with two labels is counted once."""
    parts: dict[str, float] = {}
    seen = set()
    for label, manifest in steps.items():
        if manifest.fingerprint not in seen:
            kind = part_of(label)
            parts[kind] = parts.get(kind, 0.0) + manifest.seconds
        seen.add(manifest.fingerprint)
    return parts


def numbers(manifest: Manifest, usd_per_hour: float | None) -> dict[str, float]:
    """Return column -> number of a step, of those that it has. All GPUs of its machines are held while it works."""
    tokens, duels = (manifest.stats.get(name) or None for name in ("tokens", "duels"))
    hours, gpus = manifest.seconds / 3600, manifest.made_with.get("hardware", {}).get("gpus")
    columns = {
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
    return {name: value for name, value in columns.items() if value is not None}


def total(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums of what can be added up."""
    return {name: sum(one.get(name, 0.0) for one in steps) for name in SUMMED if any(name in one for one in steps)}
