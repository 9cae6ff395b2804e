"""Where the workers of a training step and its driver talk: files in one folder.

<scratch>/train.<attempt>/   rank-0.log         all output of the process
                             rank-0.jsonl       what the driver passes on as events
                             waiting            no worker of the group has begun, at first or after a death
                             stop               the driver was told to end: save after this optimizer step, then end
                             stopped.json       ... and this was saved: step, of
                             again.json         the group ended to be started again: text, pairs in a forward pass
                             probed.json        the most pairs of a forward pass that the probe has seen fit so far
                             micro_batch.json   the pairs of a forward pass that the probe chose
                             fault.json         an expected error: the driver raises it, nothing is tried again
                             disk_full          a write found no space: the driver says so, nothing is tried again
                             result.json        files and summary of a finished training
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sparring.stages.step import Job

WAITING, STOP, STOPPED, AGAIN = "waiting", "stop", "stopped.json", "again.json"
PROBED, MICRO_BATCH = "probed.json", "micro_batch.json"
FAULT, FULL, RESULT = "fault.json", "disk_full", "result.json"
ENDINGS = (FAULT, FULL, RESULT, AGAIN, STOP)
"""With one of these a group that Ray Train has restarted has nothing to do."""


def room(job: Job) -> Path:
    """Return the folder of this attempt."""
    return job.scratch / f"train.{job.attempt}"


def tell(job: Job, name: str, value: Any) -> None:
    """Write a file of the room, whole or not at all."""
    temporary = room(job) / f".{name}.{os.getpid()}"
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(room(job) / name)


def told(job: Job, name: str) -> Any:
    """Return what a file of the room says, None when it is not there."""
    path = room(job) / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


class Speaker:
    """Appends one JSON line per event."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def __call__(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps(event) + "\n")
