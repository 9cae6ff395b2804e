"""Checkpoints of a training step: a folder counts only with a valid marker, which is written last.

    <artifact>/checkpoints.<fingerprint>/step-000004.<attempt>/...    the trainer's files, each synced
                                                             /complete.json   names every file and its size

The marker binds a checkpoint to the definition and to the bytes of its inputs, not to the number of workers (see
reshard.py). Whatever a kill leaves behind has no marker and is removed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pipeline.job import Job

MARKER = "complete.json"


def root(job: Job) -> Path:
    """Return the folder of the job's checkpoints, on the file system of the store."""
    return job.out / f"checkpoints.{job.fingerprint[:8]}"


def binding(job: Job) -> dict[str, Any]:
    """Return what a checkpoint must agree on with the job that resumes from it."""
    digests = {role: source.digest for role, source in job.inputs.items()}
    return {"fingerprint": job.fingerprint, "inputs": digests}


def latest(job: Job) -> tuple[Path, int] | None:
    """Return the newest complete checkpoint of this job and its optimizer step."""
    found = [(step, path) for path in root(job).glob("step-*") if (step := _complete(path, binding(job)))]
    return (max(found)[1], max(found)[0]) if found else None


def staged(job: Job, step: int) -> Path:
    """Return the folder to write the checkpoint of `step` into."""
    return root(job) / f"step-{step:06d}.{job.attempt}"


def seal(path: Path, step: int, bound: dict[str, Any]) -> None:
    """Write the marker: from here on the checkpoint counts."""
    files = {str(p.relative_to(path)): p.stat().st_size for p in sorted(path.rglob("*")) if p.is_file()}
    temporary = path / f"{MARKER}.tmp"
    temporary.write_text(json.dumps({"step": step, "bound": bound, "files": files}))
    sync(temporary)
    temporary.rename(path / MARKER)
    sync(path)


def prune(job: Job, keep: Path | None) -> None:
    """Remove all checkpoints but one: those before it and what a killed attempt left."""
    for path in root(job).glob("step-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder with all its files, to the disk."""
    for item in [path, *path.rglob("*")]:
        handle = os.open(item, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _complete(path: Path, bound: dict[str, Any]) -> int:
    """Return the step of a valid checkpoint, else 0."""
    try:
        marker = json.loads((path / MARKER).read_text())
    except (OSError, ValueError):
        return 0
    if marker["bound"] != bound:
        return 0
    sizes = ((path / name, size) for name, size in marker["files"].items())
    return marker["step"] if all(p.is_file() and p.stat().st_size == size for p, size in sizes) else 0
