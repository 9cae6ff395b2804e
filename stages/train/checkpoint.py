"""Checkpoints of a training step: a folder counts only with a valid marker, which is written last.

    <artifact>/checkpoints.<fingerprint>/step-000004.<attempt>/...    the trainer's files, each synced
                                                             /complete.json   names every file, its size and sha256

The marker binds a checkpoint to the definition, the code and the bytes of its inputs, not to the number of workers (see
reshard.py). Whatever a kill leaves behind has no marker and is removed; one whose bytes are not those that were
written is set aside, and training goes on from the one before it, or from the start.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.job import Job, sha256_file

MARKER = "complete.json"


def root(job: Job) -> Path:
    """Return the folder of the job's checkpoints, on the file system of the store."""
    return job.out / f"checkpoints.{job.fingerprint[:8]}"


def binding(job: Job) -> dict[str, Any]:
    """Return what a checkpoint must agree on with the job that resumes from it."""
    digests = {role: source.digest for role, source in job.inputs.items()}
    return {"fingerprint": job.fingerprint, "inputs": digests, "code": job.code}


def latest(job: Job) -> tuple[Path, int] | None:
    """Return the newest complete checkpoint of this job and its optimizer step; sizes are looked at, bytes are not."""
    found = [(step, path) for path in root(job).glob("step-*") if (step := _complete(path, binding(job)))]
    return (max(found)[1], max(found)[0]) if found else None


def drop_damaged(job: Job) -> list[str]:
    """Remove the newest checkpoints as long as their bytes are not those that were written; return a line for each."""
    lines = []
    while (found := latest(job)) and (bad := damaged_file(found[0])):
        shutil.rmtree(found[0])
        lines.append(f"the checkpoint of optimizer step {found[1]} is damaged ({bad}) and was removed")
    return lines


def damaged_file(path: Path) -> str | None:
    """Return the name of a file whose bytes are not those that a checkpoint's marker names, None where all are."""
    recorded = _marker(path).get("files", {})
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda name: _hash(path / name), recorded)
        return next((name for name, found in zip(recorded, hashes, strict=True) if found != recorded[name]), None)


def staged(job: Job, step: int) -> Path:
    """Return the folder to write the checkpoint of `step` into."""
    return root(job) / f"step-{step:06d}.{job.attempt}"


def seal(path: Path, step: int, bound: dict[str, Any]) -> None:
    """Write the marker: from here on the checkpoint counts."""
    names = [str(p.relative_to(path)) for p in sorted(path.rglob("*")) if p.is_file()]
    with ThreadPoolExecutor() as pool:
        files = dict(zip(names, pool.map(lambda name: _hash(path / name), names), strict=True))
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


def _hash(path: Path) -> dict[str, Any] | None:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)} if path.is_file() else None


def _marker(path: Path) -> dict[str, Any]:
    """Return what a checkpoint's marker says, {} where it is not there or not what `seal` writes."""
    try:
        marker = json.loads((path / MARKER).read_text())
        sizes = [entry["bytes"] + len(entry["sha256"]) for entry in marker["files"].values()]
        whole = isinstance(marker["step"], int) and bool(sizes) and "bound" in marker
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return dict(marker) if whole else {}


def _complete(path: Path, bound: dict[str, Any]) -> int:
    """Return the step of a checkpoint whose files are all there in their sizes, else 0."""
    marker = _marker(path)
    if not marker or marker["bound"] != bound:
        return 0
    sizes = ((path / name, entry["bytes"]) for name, entry in marker["files"].items())
    return int(marker["step"]) if all(p.is_file() and p.stat().st_size == size for p, size in sizes) else 0
