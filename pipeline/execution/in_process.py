"""Steps that run in the driver's own process, without Ray; actor_pool.py has the same functions for the others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from sparring.pipeline.store.parts import write_part
from sparring.stages.step import File, Input, Job, Shard, resolve


def side_by_side(job: Job) -> int:
    """Return how many shards are computed at the same time."""
    return 1


def finish(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the step's summary from the written parts, one at a time in memory."""
    files = tuple(File(**record["file"]) for record in records)
    own = Input(role="own", root=job.out, digest="", files=files)
    summary: dict[str, Any] = resolve(job.spec.finish)(job, (own.table(i) for i in range(len(files))), records)
    return summary


class InProcess:
    """The driver as the only worker of a step, which computes one shard after another."""

    ready_at = 0.0
    """When the models of the step were loaded (time.monotonic)."""

    def map(
        self, job: Job, shards: list[Shard], on_worker: Callable[[int], None], message: Callable[[str], None]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (shard index, record) as ActorPool.map does, without its retries."""
        on_worker(os.getpid())
        worker = resolve(job.spec.worker)(job)
        self.ready_at = time.monotonic()
        for shard in shards:
            begun = time.monotonic()
            yield shard.index, write_part(job, shard, worker(shard), time.monotonic() - begun)
