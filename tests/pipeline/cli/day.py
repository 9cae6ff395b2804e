"""A run that is under way, made up: its record, the events of its driver, and the lease of a driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparring.pipeline.runs import run_record
from sparring.pipeline.runs.progress import EVENTS, LEASE
from sparring.pipeline.store.lease import Lease
from tests.pipeline.report.fabricated import Run

SAMPLE, TRAIN = "sample-1f2e3d4c", "train-5a6b7c8d"
PLANNED = {(1, "sample"): "1f2e3d4c" + "0" * 56, (1, "train"): "5a6b7c8d" + "0" * 56}
TODO = {
    SAMPLE: {"label": "iteration 1 sample", "expected_s": 100.0},
    TRAIN: {"label": "iteration 1 train", "expected_s": 300.0},
}


def begun(root: Path, *events: dict[str, Any]) -> Run:
    """A run of two steps that is begun, with these events after its start."""
    run = Run(root)
    run_record.begin(run.folder, PLANNED, "", [], str(run.store), {})
    run.store.mkdir(exist_ok=True)
    soon = time.time() + 2  # after the lease is taken
    started = {"event": "run_started", "time": soon, "host": "node1", "pid": 17, "todo": TODO}
    write(run, started, *events)
    return run


def write(run: Run, *events: dict[str, Any]) -> None:
    """Append events, of now unless they have a time."""
    with (run.folder / EVENTS).open("a", encoding="utf-8") as stream:
        for event in events:
            stream.write(json.dumps({"time": time.time(), **event}) + "\n")


def shard(done: int, of: int, **more: Any) -> dict[str, Any]:
    """A shard of the sampling."""
    return {
        "event": "shard",
        "step": SAMPLE,
        "kind": "sample",
        "label": TODO[SAMPLE]["label"],
        "done": done,
        "of": of,
    } | more


@contextmanager
def driven(run: Run) -> Iterator[Lease]:
    """This process is the run's driver."""
    with Lease(run.folder / LEASE, f"run {run.name}").acquire(wait=False) as lease:
        yield lease


def killed(run: Run, **changed: Any) -> None:
    """Leave the lease of a driver of this machine that is gone, or of one with what is `changed`."""
    with driven(run):
        holder = json.loads((run.folder / LEASE).read_text())
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = {"pid": int(process.stdout), "started": "1"}
    (run.folder / LEASE).write_text(json.dumps({**holder, **dead, **changed}))


def aged(path: Path, seconds: float) -> None:
    """Date a file back."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
