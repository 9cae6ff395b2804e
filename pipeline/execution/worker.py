"""The worker's process: it computes a step's shards, one after another, with models that it loads before the first one.

What the process prints goes to a file under the run.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from typing import Any, NamedTuple

from sparring.pipeline.execution import in_process
from sparring.pipeline.store.parts import write_part
from sparring.pipeline.store.remote import localised
from sparring.stages import loaded
from sparring.stages.step import Job, Shard, resolve
from sparring.stages.vitals import vitals


class Loaded(NamedTuple):
    """What a worker says when it has a step's models."""

    warnings: list[str]
    """The stage's."""
    loads: list[loaded.Load]
    """The models that it had to load: those that it kept are not among them."""


class Worker:
    """An actor's process. The job comes with every shard: a restarted actor knows only its first one."""

    def __init__(self, job: Job, number: int) -> None:
        redirect_output(job, number)
        os.environ["OMP_NUM_THREADS"] = str(job.workers.cpus)
        self.number, self.fingerprint, self.load_s, self.ended = number, "", 0.0, 0.0
        self.worker: Any = None

    def process(self) -> tuple[str, dict[str, Any]]:
        """Return Ray's id of the node, and the process's vitals there."""
        import ray

        return ray.get_runtime_context().get_node_id(), vitals()

    def prepare(self, job: Job) -> None:
        """Do what the step lets its workers do before its inputs exist."""
        resolve(job.spec.prepare)(job)

    def load(self, job: Job) -> Loaded:
        """Load a step's models, in place of those of the step before."""
        job = localised(job)
        if self.worker is not None and self.fingerprint == job.fingerprint:
            return Loaded([], [])
        begun = time.monotonic()
        if self.worker:
            self.worker = None
            gc.collect()
            torch = sys.modules.get("torch")
            if torch and torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        redirect_output(job, self.number)
        warnings: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("sparring.stages")
        logger.addHandler(handler)
        try:
            self.worker, self.fingerprint = resolve(job.spec.worker)(job), job.fingerprint
        finally:
            logger.removeHandler(handler)
        self.load_s = time.monotonic() - begun
        return Loaded(warnings, loaded.taken_note_of())

    def drop_large(self) -> None:
        """Free the memory of large models."""
        self.worker, self.fingerprint = None, ""
        loaded.drop_large()

    def run(self, job: Job, shard: Shard) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compute a shard and write its part; return vitals and the record, which counts the load once, and of the
        seconds of shards that are computed at once each one once."""
        job = localised(job)
        self.load(job)
        begun, self.load_s = time.monotonic() - self.load_s, 0.0
        part = self.worker(shard)
        seconds, self.ended = time.monotonic() - max(begun, self.ended), time.monotonic()
        return vitals(), write_part(job, shard, part, seconds)

    def probe(self, job: Job, shard: Shard) -> None:
        """Compute a shard and keep nothing."""
        self.load(job)
        self.worker(shard)


def run_task(job: Job, shard: Shard) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compute a shard of a light step as a task of its own."""
    job = localised(job)
    redirect_output(job, 0)
    begun = time.monotonic()
    part = resolve(job.spec.worker)(job)(shard)
    return vitals(), write_part(job, shard, part, time.monotonic() - begun)


def finish_task(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the step's summary."""
    job = localised(job)
    redirect_output(job, 0)
    return in_process.finish(job, records)


def redirect_output(job: Job, number: int) -> None:
    """Send what this process prints to a file of its own under the run."""
    job.scratch.mkdir(parents=True, exist_ok=True)
    path = job.scratch / f"{job.out.name}-{number}-{os.getpid()}.log"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
