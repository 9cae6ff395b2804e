"""What runs in a worker's process: a step's shards, one after another, its models loaded at the first one.

Everything a worker prints goes to a file under the run.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from sparring.pipeline import in_process
from sparring.pipeline.artifact import write_part
from sparring.stages.step import Job, Shard, resolve


class Worker:
    """An actor's process. The job comes with every shard: a restarted actor knows only its first one."""

    def __init__(self, job: Job, number: int) -> None:
        quiet(job, number)
        os.environ["OMP_NUM_THREADS"] = str(job.workers.cpus)
        self.number, self.fingerprint, self.load_s = number, "", 0.0
        self.worker: Callable[[Shard], Any] | None = None

    def pid(self) -> int:
        """Return the process's id."""
        return os.getpid()

    def prepare(self, job: Job) -> None:
        """Do what the step lets its workers do before its inputs exist."""
        resolve(job.spec.prepare)(job)

    def load(self, job: Job) -> list[str]:
        """Load a step's models, in place of those of the step before; return what the stage warned of."""
        if self.worker is not None and self.fingerprint == job.fingerprint:
            return []
        begun = time.monotonic()
        if self.worker:
            self.worker = None
            _free_memory()
        quiet(job, self.number)
        with _warnings() as said:
            self.worker, self.fingerprint = in_process.make(job), job.fingerprint
        self.load_s = time.monotonic() - begun
        return said

    def run(self, job: Job, shard: Shard) -> tuple[int, dict[str, Any]]:
        """Do a shard and write its part; return the process's id and the part's record, the load counted in it once."""
        self.load(job)
        begun, self.load_s = time.monotonic() - self.load_s, 0.0
        part = self._worker(shard)
        return os.getpid(), write_part(job, shard, part, time.monotonic() - begun)

    def probe(self, job: Job, shard: Shard) -> None:
        """Do a shard and keep nothing."""
        self.load(job)
        self._worker(shard)

    def _worker(self, shard: Shard) -> Any:
        assert self.worker is not None
        return self.worker(shard)


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what the stages log as warnings in the block."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sparring.stages")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def _free_memory() -> None:
    """Give back what the last step's models held."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def run_once(job: Job, shard: Shard) -> tuple[int, dict[str, Any]]:
    """Do a shard of a light step as a task of its own."""
    quiet(job, 0)
    begun = time.monotonic()
    return os.getpid(), write_part(job, shard, in_process.make(job)(shard), time.monotonic() - begun)


def finish_once(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the step's summary."""
    quiet(job, 0)
    return in_process.summary(job, records)


def quiet(job: Job, number: int) -> None:
    """Send what this process prints to a file of its own under the run."""
    job.scratch.mkdir(parents=True, exist_ok=True)
    path = job.scratch / f"{job.out.name}-{number}-{os.getpid()}.log"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
