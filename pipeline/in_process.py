"""What a worker does with a job, and the worker of a step that is done in the driver's own process, without Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from sparring.pipeline.artifact import write_part
from sparring.stages.step import File, Input, Job, Part, Shard, resolve


def make(job: Job) -> Callable[[Shard], Part]:
    """Return the step's worker."""
    worker: Callable[[Shard], Part] = resolve(job.spec.worker)(job)
    return worker


def summary(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the step's summary from the written parts, one at a time in memory."""
    files = tuple(File(**record["file"]) for record in records)
    own = Input(role="own", root=job.out, digest="", files=files)
    found: dict[str, Any] = resolve(job.spec.finish)(job, (own.table(i) for i in range(len(files))), records)
    return found


class InProcess:
    """Does one shard after another."""

    ready_at = 0.0
    """When the models of the step were loaded (time.monotonic)."""

    def map(
        self, job: Job, shards: list[Shard], worker: Callable[[int], None], say: Callable[[str], None]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """As Pool.map, without its second tries."""
        worker(os.getpid())
        made = make(job)
        self.ready_at = time.monotonic()
        for shard in shards:
            begun = time.monotonic()
            yield shard.index, write_part(job, shard, made(shard), time.monotonic() - begun)
