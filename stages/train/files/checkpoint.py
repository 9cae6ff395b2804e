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
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sparring.stages.errors import SparringError
from sparring.stages.fingerprint import digest
from sparring.stages.step import Job, sha256_file

MARKER = "complete.json"


def root(job: Job) -> Path:
    """Return the folder of the job's checkpoints, on the file system of the store."""
    return job.out / f"checkpoints.{job.fingerprint[:8]}"


def binding(job: Job) -> dict[str, Any]:
    """Return what a checkpoint must agree on with the job that resumes from it."""
    digests = {role: source.digest for role, source in job.inputs.items()}
    return {"fingerprint": job.fingerprint, "inputs": digests, "code": job.code}


def latest(job: Job) -> tuple[Path, int] | None:
    """Return the newest complete checkpoint of this job and its optimizer step; sizes are compared, bytes are not."""
    complete = []
    for path in root(job).glob("step-*"):
        marker = _marker(path)
        if marker and marker["bound"] == binding(job):
            sizes = ((path / name, entry["bytes"]) for name, entry in marker["files"].items())
            if marker["step"] and all(file.is_file() and file.stat().st_size == size for file, size in sizes):
                complete.append((int(marker["step"]), path))
    return (max(complete)[1], max(complete)[0]) if complete else None


def drop_damaged(job: Job) -> list[str]:
    """Remove the checkpoints whose bytes are not those that were written; return a line for each."""
    lines = []
    for path in sorted(root(job).glob("step-*")):
        marker = _marker(path)
        if marker and marker["bound"] != binding(job):
            continue
        if bad := damage(path):
            shutil.rmtree(path, ignore_errors=True)
            lines.append(f"the checkpoint {path.name} is damaged ({bad}) and was removed")
    return lines


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint that has a marker, None where nothing is or none was written."""
    if not (path / MARKER).exists():
        return None
    recorded = _marker(path).get("files")
    if recorded is None:
        return f"{MARKER} is not what was written"
    return next((name for name, entry in hashes(path, recorded).items() if entry != recorded[name]), None)


def hashes(path: Path, names: Iterable[str] | None = None, rank: int | None = None) -> dict[str, dict[str, Any] | None]:
    """Return size and sha256 of a checkpoint's files by name, None for a missing one.

    rank: only those that this rank has written, by their names; rank 0 has written what names none.
    """

    def entry(name: str) -> dict[str, Any] | None:
        file = path / name
        return {"bytes": file.stat().st_size, "sha256": sha256_file(file)} if file.is_file() else None

    if names is None:
        names = [str(item.relative_to(path)) for item in path.rglob("*") if item.is_file()]
    if rank is not None:
        writers = {name: re.search(r"zero_pp_rank_(\d+)_", name) for name in names}
        names = [name for name, writer in writers.items() if (int(writer[1]) if writer else 0) == rank]
    chosen = sorted(names)
    with ThreadPoolExecutor() as pool:
        return dict(zip(chosen, pool.map(entry, chosen), strict=True))


def staged(job: Job, step: int) -> Path:
    """Return the folder to write the checkpoint of `step` into."""
    return root(job) / f"step-{step:06d}.{job.attempt}"


def seal(path: Path, step: int, bound: dict[str, Any], files: Mapping[str, Any] | None = None) -> None:
    """Write the marker: from now on the checkpoint counts. files: what `hashes` returned, over all ranks."""
    files = hashes(path) if files is None else files
    temporary = path / f"{MARKER}.tmp"
    body = {"step": step, "bound": bound, "files": files}
    temporary.write_text(json.dumps({**body, "seal": digest(body)}), encoding="utf-8")
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


def _marker(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's marker, {} where there is none or `seal` did not write it."""
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        return dict(marker) if marker.pop("seal") == digest(marker) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SparringError):
        return {}
