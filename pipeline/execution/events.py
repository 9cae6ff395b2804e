"""One JSONL stream of a run's events, which the terminal and every tracker read.

{"time": 1760000000.0, "event": "shard", "step": "sample-1f2e3d4c", "done": 3, "of": 8, "tokens": 9120, ...}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sparring.stages.plain import counts_text, printable


class Events:
    """Append events to `path` and show them: bars on a terminal, plain lines in a log."""

    def __init__(self, path: Path, stream: TextIO | None = None) -> None:
        stream = stream or sys.stderr  # as it is now: it may have been replaced since the import
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._stream = stream
        self._bars = _Bars(stream) if stream.isatty() else None

    def __call__(self, event: str, **fields: Any) -> None:
        """Record one event."""
        record = {"time": time.time(), "event": event, **fields}
        self._file.write(json.dumps(record) + "\n")
        if self._bars:
            self._bars.show(record)
        elif line := describe(record):
            clock = time.strftime("%H:%M:%S", time.localtime(record["time"]))
            print(f"{clock} {line}", file=self._stream, flush=True)

    def message(self, text: str) -> None:
        """Record a line for the user."""
        self("message", text=text)

    def warning(self, text: str) -> None:
        """Record a line that the user should act on, or know of."""
        self("message", text=text, level="warning")

    def close(self) -> None:
        """Stop the display and close the stream."""
        if self._bars:
            self._bars.progress.stop()
        self._file.close()


def describe(record: dict[str, Any]) -> str | None:
    """Return the plain line of an event, safe for a terminal; None for those that only the stream needs."""
    name = f"[{record['label']}] {record['step']}" if "label" in record else record.get("step", "")
    match record["event"]:
        case "message":
            line = str(record["text"])
        case "step_started":
            line = f"{name}: {record['why']}" + (f"; {record['done']} of {record['of']} done" if record["of"] else "")
        case "shard" | "train_step":
            line = f"{name}: {record['done']}/{record['of']}{_rate(record)}"
        case "step_done":
            rows = record["rows"]
            dropped = counts_text(rows["dropped"])
            counts = f"{rows['in']} rows in, {rows['out']} out" + (f", dropped: {dropped}" if dropped else "")
            line = f"{name}: done in {record['seconds']:.1f} s; {counts}"
        case _:
            return None
    return printable(line)


def _rate(record: dict[str, Any]) -> str:
    rate = f" {record['tokens_per_s']:.0f} tokens/s" if record.get("tokens_per_s") else ""
    loss = f" loss {record['loss']:.4g}" if "loss" in record else ""
    eta = f" ETA {record['eta_s']:.0f} s" if record.get("eta_s") else ""
    return rate + loss + eta


class _Bars:
    """A progress bar per step on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=Console(file=stream),
        )
        self.tasks: dict[str, TaskID] = {}
        self.progress.start()

    def show(self, record: dict[str, Any]) -> None:
        step = record.get("step", "")
        match record["event"]:
            case "step_started":
                title = f"[{record['label']}] {step}".replace("[", "\\[")
                self.tasks[step] = self.progress.add_task(title, total=record["of"], completed=record["done"], rate="")
            case "shard" | "train_step" if step in self.tasks:
                self.progress.update(self.tasks[step], total=record["of"], completed=record["done"], rate=_rate(record))
            case "step_done" if step in self.tasks:
                dropped = sum(record["rows"]["dropped"].values())
                rate = f"{record['rows']['out']} rows" + (f", {dropped} dropped" if dropped else "")
                self.progress.update(self.tasks[step], rate=rate)
                self.progress.stop_task(self.tasks[step])
            case "message":
                self.progress.console.print(describe(record), markup=False, highlight=False)
