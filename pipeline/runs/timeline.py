"""When the steps of a run were made, by its events: what was planned and spent, and what was made side by side.

steps       |--sample 2--|--train 2--|
beside      |-score-|
wall        |------------------------|        saved: the sum of the steps less the wall
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.pipeline.runs.run_history import RunHistory
from sparring.stages.fingerprint import artifact_name


@dataclass(frozen=True, kw_only=True)
class Span:
    """A step that was made."""

    iteration: int
    label: str
    begin: float
    """Seconds of the run's work before it; times at which no step was made are left out."""
    end: float
    planned: float | None
    """Seconds that the plan expected; None where the events do not say."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The steps that a run has made, in the order in which they began."""

    spans: Sequence[Span]
    loads: int
    """Models that its processes have loaded."""

    @property
    def wall(self) -> float:
        """Seconds in which a step was made."""
        return max(span.end for span in self.spans)

    @property
    def saved(self) -> float:
        """Seconds in which two steps were made at the same time."""
        return sum(span.end - span.begin for span in self.spans) - self.wall

    @property
    def sentence(self) -> str:
        """What a report says of it."""
        known = [span for span in self.spans if span.planned is not None]
        planned = sum(span.planned or 0.0 for span in known)
        spent = sum(span.end - span.begin for span in known)
        parts = [f"{len(self.spans)} steps were made in {_minutes(self.wall)} by the clock, starts of workers included"]
        parts += [f"side by side, which saved {_minutes(self.saved)}"] if self.saved >= 0.5 else []
        parts += [f"{self.loads} models were loaded"] if self.loads else []
        if known:
            parts.append(f"planned were {_minutes(planned)} for {len(known)} of them, which took {_minutes(spent)}")
        return "; ".join(parts) + "."


def timeline(events: Iterable[Mapping[str, Any]], names: Mapping[str, tuple[int, str]]) -> Timeline | None:
    """Return the timeline of the steps in `names`: name of an artifact -> (iteration, label); None where none is made.

    Of a step that was begun several times, the last time before it was done counts.
    """
    begun: dict[str, float] = {}
    made: dict[str, tuple[float, float]] = {}
    planned: dict[str, float] = {}
    loads = 0
    for event in events:
        kind, step = event["event"], str(event.get("step", ""))
        if kind == "run_started":
            planned |= {name: one["expected_s"] for name, one in event["todo"].items()}
        elif step not in names:
            continue
        elif kind == "step_started":
            begun[step] = event["time"]
        elif kind == "load":
            loads += 1
        elif kind == "step_done" and step in begun:
            made[step] = begun[step], event["time"]
    if not made:
        return None
    return Timeline(
        spans=[
            Span(
                iteration=names[step][0],
                label=names[step][1],
                begin=begin - idle,
                end=end - idle,
                planned=planned.get(step),
            )
            for step, begin, end, idle in _without_idle(made)
        ],
        loads=loads,
    )


def timeline_of(history: RunHistory) -> Timeline | None:
    """Return the timeline of an arm; a step that arms share is in all of theirs."""
    names = {
        artifact_name(label.partition("_")[0], fingerprint): (t, label)
        for t, row in sorted(history.record.planned.items(), reverse=True)
        for label, fingerprint in reversed(row.items())
    }
    return timeline(history.events(), names)


def _without_idle(made: Mapping[str, tuple[float, float]]) -> list[tuple[str, float, float, float]]:
    """Return step, begin, end of each, and the time before it in which none was made, in the order of their begins."""
    spans = []
    idle = busy_until = min(begin for begin, _ in made.values())
    for step, (begin, end) in sorted(made.items(), key=lambda item: item[1]):
        idle += max(0.0, begin - busy_until)
        busy_until = max(busy_until, end)
        spans.append((step, begin, end, idle))
    return spans


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
