"""Where the workers of a training step and its driver exchange messages: files in one folder.

Ray Train starts the workers, restarts a group that lost one, and passes back what rank 0 returns. Files carry what it
has no channel for: what happens while workers run, a request to stop, and what must outlive a group that died.

<scratch>/train.<attempt>/   rank-0.log         all output of the process
                             rank-0.jsonl       events of a rank, which the driver passes on
                             group-N            one for each group of workers that was requested; without content, for
                                                which there may be no space
                             stop               the run must end: save after this optimizer step, then end
                             micro_batch.json   pairs of a forward pass: `fits`, the most that the probe has seen fit
                                                so far, and `chosen`, what it chose
                             ending.json        why a group that Ray restarts has nothing to do: an error that the
                                                driver raises, too little memory and the pairs to go on with, or what
                                                rank 0 returned, where another rank died before Ray had it
                             disk_full          a write found no space; without content as well
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparring.stages.step import Job

STOP, DISK_FULL, ENDING, MICRO_BATCH, GROUP = "stop", "disk_full", "ending.json", "micro_batch.json", "group-"


def mailbox(job: Job) -> Path:
    """Return the folder of this attempt."""
    return job.scratch / f"train.{job.attempt}"


def post(job: Job, name: str, value: Any) -> None:
    """Write a file of the mailbox, completely or not at all."""
    temporary = mailbox(job) / f".{name}.{os.getpid()}"
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(mailbox(job) / name)


def read(job: Job, name: str) -> Any:
    """Return the content of a file of the mailbox, None where there is no such file."""
    path = mailbox(job) / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def request_group(job: Job) -> None:
    """Count a group of workers that is waited for: the first one, and another after the death of a worker."""
    (mailbox(job) / f"{GROUP}{groups(job) + 1}").touch()


def groups(job: Job) -> int:
    """Return how many groups of workers were requested so far."""
    return len(list(mailbox(job).glob(f"{GROUP}*")))


class Sender:
    """Appends one JSON line per event of a rank."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def __call__(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps(event) + "\n")


class Receiver:
    """Passes on, in the driver, the events that the ranks have sent since the last call."""

    def __init__(self, job: Job, report: Callable[[dict[str, Any]], None]) -> None:
        self.job, self.report = job, report
        self.places: dict[Path, int] = {}
        self.group = 0
        """The last group of workers of which one has begun."""

    def __call__(self) -> None:
        for path in sorted(mailbox(self.job).glob("rank-*.jsonl")):
            with path.open("rb") as handle:
                handle.seek(self.places.get(path, 0))
                for line in handle:
                    if not line.endswith(b"\n"):
                        break
                    self.places[path] = self.places.get(path, 0) + len(line)
                    event = json.loads(line)
                    self.group = max(self.group, event.pop("group", 0))
                    self.report(event)
