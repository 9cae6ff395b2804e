"""The shards of a step: a table each, renamed into place, and a record of it that counts until the manifest is there.

store/pairs-3f9c2a1b/part-00007.<attempt>.parquet, and part-00007.<attempt>.json with the shard's row of the manifest.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparring.pipeline.store import remote
from sparring.pipeline.store.files import disk_errors, sync, write_text
from sparring.stages.errors import DataError
from sparring.stages.step import File, Job, Part, Shard, sha256_file

_NAME = re.compile(r"part-(\d{5})\.([0-9a-z]+)\.json$")


def write_part(job: Job, shard: Shard, part: Part, seconds: float) -> dict[str, Any]:
    """Write a shard's table under its final name, then its record; return the record."""
    import pyarrow.parquet as pq

    lost = part.rows_in - part.table.num_rows - sum(part.dropped.values())
    if lost:
        raise DataError(f"{job.spec.kind} shard {shard.index}: {lost} rows are neither written nor counted as dropped.")
    stem = f"part-{shard.index:05d}.{job.attempt}"
    path = job.out / f"{stem}.parquet"
    with disk_errors(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        pq.write_table(part.table, temporary, compression="zstd")
        sync(temporary)
        file = File(
            name=f"part-{shard.index:05d}.parquet",
            path=path.name,
            sha256=sha256_file(temporary),
            bytes=temporary.stat().st_size,
        )
        record = {
            "fingerprint": job.fingerprint,
            "inputs": {role: source.digest for role, source in sorted(job.inputs.items())},
            "file": asdict(file),
            "attempt": job.attempt,
            "code": job.code,
            "rows_in": part.rows_in,
            "rows_out": part.table.num_rows,
            "dropped": part.dropped,
            "stats": part.stats,
            "seconds": seconds,
        }
        os.replace(temporary, path)
        write_text(job.out / f"{stem}.json", json.dumps(record))
    if job.store:
        for written in (path, job.out / f"{stem}.json"):
            remote.connect(job.store).put(f"{job.out.name}/{written.name}", written)
    return record


def finished_parts(job: Job) -> dict[int, dict[str, Any]]:
    """Return index -> record of the shards that are done for exactly this job by this code; others are ignored."""
    done: dict[int, dict[str, Any]] = {}
    inputs = {role: source.digest for role, source in job.inputs.items()}
    ours = {"fingerprint": job.fingerprint, "inputs": inputs, "code": job.code}
    if job.store:
        remote.connect(job.store).copy_records(job.out.name, "part-*.json")
    for path in sorted(job.out.glob("part-*.json")):
        match = _NAME.search(path.name)
        record = _record(path)
        same = record is not None and all(record.get(key) == value for key, value in ours.items())
        if match and record and same and damaged_part(path) is None:
            done.setdefault(int(match[1]), record)
    return done


def damaged_part(path: Path) -> str | None:
    """Return what is wrong with a finished shard, given its record's path; None where nothing is."""
    record = _record(path)
    if record is None:
        return "its record is not what was written"
    part, bucket = path.parent / record["file"]["path"], remote.of(path.parents[1])
    intact = part.is_file() and sha256_file(part) == record["file"]["sha256"]
    if bucket and not intact:
        intact = not bucket.fault(path.parent.name, File(**record["file"]))
    return None if intact else f"{part.name} is not what was written"


def _record(path: Path) -> dict[str, Any] | None:
    """Return a shard's record, None where the file is not one."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        file = record["file"]
        return record if isinstance(file["path"], str) and isinstance(file["sha256"], str) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
