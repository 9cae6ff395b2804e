"""One JSONL stream of what happens in a run; the terminal and every tracker read the same events.

{"time": 1760000000.0, "event": "shard", "step": "sample-1f2e3d4c", "done": 3, "of": 8, "tokens": 9120, ...}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from sparring.stages.plain import printable


class Events:
    """Append events to `path` and show them: bars on a terminal, plain lines in a log."""

    def __init__(self, path: Path, stream: TextIO = sys.stderr) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._view = _Bars(stream) if stream.isatty() else _Lines(stream)

    def __call__(self, event: str, **fields: Any) -> None:
        """Record one event."""
        record = {"time": time.time(), "event": event, **fields}
        self._file.write(json.dumps(record) + "\n")
        self._view(record)

    def close(self) -> None:
        """Stop the display and close the stream."""
        self._view.close()
        self._file.close()


def describe(record: dict[str, Any]) -> str | None:
    """Return the plain line of an event, safe for a terminal; None for those that only the stream needs."""
    line = _described(record)
    return None if line is None else printable(line)


def _described(record: dict[str, Any]) -> str | None:
    name = f"[{record['label']}] {record['step']}" if "label" in record else record.get("step", "")
    match record["event"]:
        case "message":
            return str(record["text"])
        case "step_started":
            return f"{name}: {record['why']}" + (f"; {record['done']} of {record['of']} done" if record["of"] else "")
        case "shard" | "train_step":
            return f"{name}: {record['done']}/{record['of']}{_rate(record)}"
        case "step_done":
            return f"{name}: done in {record['seconds']:.1f} s; {_rows(record['rows'])}"
    return None


def _rate(record: dict[str, Any]) -> str:
    rate = f" {record['tokens_per_s']:.0f} tokens/s" if record.get("tokens_per_s") else ""
    loss = f" loss {record['loss']:.4g}" if "loss" in record else ""
    eta = f" ETA {record['eta_s']:.0f} s" if record.get("eta_s") else ""
    return rate + loss + eta


def _rows(rows: dict[str, Any]) -> str:
    dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(rows["dropped"].items()))
    return f"{rows['in']} rows in, {rows['out']} out" + (f", dropped: {dropped}" if dropped else "")


def _short(rows: dict[str, Any]) -> str:
    dropped = sum(rows["dropped"].values())
    return f"{rows['out']} rows" + (f", {dropped} dropped" if dropped else "")


class _Lines:
    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, record: dict[str, Any]) -> None:
        line = describe(record)
        if line:
            print(
                f"{time.strftime('%H:%M:%S', time.localtime(record['time']))} {line}",
                file=self.stream,
                flush=True,
            )

    def close(self) -> None:
        pass


class _Bars:
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

    def __call__(self, record: dict[str, Any]) -> None:
        step = record.get("step", "")
        match record["event"]:
            case "step_started":
                title = f"[{record['label']}] {step}".replace("[", "\\[")
                self.tasks[step] = self.progress.add_task(title, total=record["of"], completed=record["done"], rate="")
            case "shard" | "train_step" if step in self.tasks:
                self.progress.update(
                    self.tasks[step],
                    total=record["of"],
                    completed=record["done"],
                    rate=_rate(record),
                )
            case "step_done" if step in self.tasks:
                self.progress.update(self.tasks[step], rate=_short(record["rows"]))
                self.progress.stop_task(self.tasks[step])
            case "message":
                self.progress.console.print(describe(record), markup=False, highlight=False)

    def close(self) -> None:
        self.progress.stop()
