"""How a run is doing, out of its record, the stream of its events and its lease: `sparring status`.

Whoever sees the folders can look, from any machine: nothing is asked of the driver, and Ray is not started. Times are
those of the driver's clock and of the file system; the clock of the machine that looks is not compared with them.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.store.lease import Holder, holder_of, silence
from sparring.stages.fingerprint import artifact_name

EVENTS = "events.jsonl"
LEASE = ".lease.json"
"""Of the driver, in the folder of a run and of each arm."""
WARNINGS = 5
"""The last ones are shown."""
Ended = Literal["finished", "stopped", "failed"]


@dataclass(kw_only=True)
class StepProgress:
    """A step that this run makes."""

    name: str
    label: str
    """`iteration 1 sample`."""
    state: Literal["waiting", "running", "done"] = "waiting"
    done: int = 0
    of: int = 0
    tokens_per_s: float | None = None
    eta_s: float | None = None
    """As the last event has it."""
    expected_s: float | None = None
    """As planned."""
    seconds: float | None = None
    """Once it is done."""
    attempt: str = ""
    """In the names of its files."""
    at: float = 0.0
    """When the last event came, by the driver's clock."""

    def left_s(self, now: float) -> float | None:
        """Return the seconds that it has left at `now`, by the driver's clock; None where nothing is known."""
        if self.state == "done":
            return 0.0
        known = self.eta_s if self.eta_s is not None else self.expected_s
        return known if known is None or self.state == "waiting" else max(0.0, known - (now - self.at))


@dataclass(kw_only=True)
class Session:
    """The events since the run was last begun."""

    steps: dict[str, StepProgress] = field(default_factory=dict)
    """Name -> step, in the order of the plan."""
    workers: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """(host, pid) -> the last event of a worker of a running step."""
    warnings: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=WARNINGS))
    """(time, text)."""
    ended: Ended | None = None
    why: str = ""
    """Why it ended, where it did not finish."""
    began: float = 0.0
    at: float = 0.0
    """When the last event came."""

    def take(self, record: Mapping[str, Any]) -> None:
        """Take an event into account; what no version of ours writes is left out."""
        event, self.at = record["event"], float(record["time"])
        name = str(record.get("step", ""))
        match event:
            case "run_started":
                self.began, self.ended = self.at, None
                self.steps, self.workers = {}, {}
                self.warnings.clear()
                for name, todo in record["todo"].items():
                    self.steps[name] = StepProgress(name=name, label=todo["label"], expected_s=todo["expected_s"])
            case "finished" | "stopped" | "failed":
                self.ended, self.why = event, str(record.get("text", ""))
            case "message" if record.get("level") == "warning" or "WARNING" in record["text"]:
                self.warnings.append((self.at, record["text"]))
            case "worker" | "vitals":
                self.workers[str(record.get("host", "?")), int(record["pid"])] = dict(record)
            case "step_started" | "shard" | "train_step" | "step_done":
                step = self.steps.setdefault(name, StepProgress(name=name, label=record["label"]))
                step.at = self.at
                if event == "step_done":
                    step.state, step.seconds = "done", record["seconds"]
                    self.workers = {key: one for key, one in self.workers.items() if one.get("step") != name}
                else:
                    step.state, step.done, step.of = "running", record["done"], record["of"]
                    step.attempt = record.get("attempt", step.attempt)
                    step.tokens_per_s = record.get("tokens_per_s") or None
                    step.eta_s = record.get("eta_s")


class Stream:
    """Reads a run's events as they are appended."""

    def __init__(self, path: Path) -> None:
        self.path, self.place, self.session = path, 0, Session()

    def read(self) -> Session:
        """Take the events that have come since the last call; a line that is damaged, or not whole yet, is left out."""
        with suppress(OSError):
            if self.path.stat().st_size < self.place:
                self.place, self.session = 0, Session()
            for line in self._lines():
                with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    self.session.take(json.loads(line))
        return self.session

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as handle:
            handle.seek(self.place)
            for line in handle:
                if not line.endswith(b"\n"):
                    return
                self.place += len(line)
                yield line


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A run at one moment."""

    name: str
    holder: Holder | None
    """Its driver, alive or dead; None where no driver has it."""
    session: Session
    planned: int
    """Steps of its plan, those that arms share once."""
    made: int
    """Those of them that its record has as made."""
    now: float
    """By the driver's clock."""

    @property
    def is_running(self) -> bool:
        """Whether its driver is alive."""
        return self.holder is not None and self.holder.is_alive

    @property
    def state(self) -> str:
        """`running`, `killed`, `finished`, `stopped`, `failed`, or `not running` where nothing says why it ended."""
        if self.holder:
            return "running" if self.is_running else "killed"
        if self.made == self.planned:
            return "finished"
        return self.session.ended if self.session.ended in ("stopped", "failed") else "not running"

    @property
    def left_s(self) -> float | None:
        """Seconds that the run has left if one step follows another; None where that is not known of a step."""
        each = [step.left_s(self.now) for step in self.session.steps.values()]
        known = [one for one in each if one is not None]
        return sum(known) if self.is_running and known and len(known) == len(each) else None


def progress_of(arms: Sequence[RunHistory], stream: Stream) -> Progress:
    """Return how a run is doing; arms: what is recorded of it, read just now."""
    planned = {
        (label.partition("_")[0], fp)
        for arm in arms
        for row in arm.record.planned.values()
        for label, fp in row.items()
    }
    made = {
        (label.partition("_")[0], one.fingerprint)
        for arm in arms
        for row in arm.record.steps.values()
        for label, one in row.items()
    }
    session = stream.read()
    holder = next(filter(None, (holder_of(arm.folder / LEASE) for arm in arms)), None)
    now = session.at
    if holder and holder.is_alive:
        if session.began < datetime.fromisoformat(holder.since).timestamp():  # it still prepares: all of this is older
            session = Session()
        with suppress(OSError):
            now = time.time() if holder.here else session.at + silence(stream.path)
    finished = {artifact_name(kind, fp) for kind, fp in made}
    for name, step in session.steps.items():  # an artifact that another run has made is adopted without an event
        if step.state == "waiting" and name in finished:
            step.state = "done"
    return Progress(
        name=arms[0].run,
        holder=holder,
        session=session,
        planned=len(planned),
        made=len(planned & made),
        now=now,
    )


def events_file(folder: Path) -> Path:
    """Return the stream of a run's events, which its arms share: in its folder, or in the one above."""
    return next((path / EVENTS for path in (folder, folder.parent) if (path / EVENTS).is_file()), folder / EVENTS)
