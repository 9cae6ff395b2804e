"""Steps that run in the driver's own process, without Ray; those of actor_pool.py run on Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from sparring.pipeline.execution.fault_policy import step_errors
from sparring.pipeline.store import remote
from sparring.pipeline.store.parts import write_part
from sparring.stages import loaded
from sparring.stages.loaded import Load
from sparring.stages.step import File, Input, Job, Shard, resolve
from sparring.stages.vitals import vitals


def finish(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the step's summary from the written parts, one at a time in memory."""
    files = tuple(File(**record["file"]) for record in records)
    own = Input(role="own", root=job.out, digest="", files=files, pull=remote.pull_of(job))
    with step_errors(job):
        summary: dict[str, Any] = resolve(job.spec.finish)(job, (own.table(i) for i in range(len(files))), records)
        return summary


class InProcess:
    """The driver as the only worker of a step, which computes one shard after another."""

    ready_at = 0.0
    """When the models of the step were loaded (time.monotonic)."""

    def map(
        self,
        job: Job,
        shards: list[Shard],
        on_worker: Callable[[dict[str, Any]], None],
        message: Callable[[str], None],
        on_load: Callable[[int, Load], None] = lambda pid, load: None,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (shard index, record) as ActorPool.map does, without its retries."""
        process = vitals()
        on_worker(process)
        with step_errors(job):
            worker = resolve(job.spec.worker)(job)
        for load in loaded.taken_note_of():
            on_load(process["pid"], load)
        self.ready_at = time.monotonic()
        for shard in shards:
            begun = time.monotonic()
            with step_errors(job, shard):
                record = write_part(job, shard, worker(shard), time.monotonic() - begun)
            yield shard.index, record
