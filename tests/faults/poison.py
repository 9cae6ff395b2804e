"""Workers that die, fail or hang on chosen prompts, for the tests of the pool."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sparring.stages.sample.stage import Sampler
from sparring.stages.step import Job, Part, Shard

SICK = "The poison"


def strike(how: str) -> None:
    """Die, fail, hang, or have a bug."""
    if how == "bug":
        raise ValueError("no such row\nat all")
    if how.startswith("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    time.sleep(3600)


class Poisoned(Sampler):
    """The real sampler on a real model, whose engine dies of the prompts that start with SICK."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        sick = set(self.chat.tokenizer(SICK)["input_ids"])
        real = self.engine.generate

        def generate(prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> Any:
            if any(sick <= set(ids) for ids in prompt_ids):
                strike(os.environ.get("SPARRING_TEST_STRIKE", "die"))
            return real(prompt_ids, seeds)

        self.engine.generate = generate  # type: ignore[method-assign]


def three(job: Job) -> int:
    """As many shards as a worker computes at once."""
    return 3


class Light:
    """No model: a row is sick when the job says so."""

    now = 0
    """Shards that the process computes now."""

    def __init__(self, job: Job) -> None:
        self.sick, self.how = set(job.settings["sick"]), job.settings["how"]
        self.once = job.scratch / "struck"
        with (job.scratch / "loads").open("a") as loads:
            loads.write(".")
        if self.how == "die loading":
            strike("die")
        if self.how == "warn":
            logging.getLogger("sparring.stages.sample").warning("a slower way is taken")
        if self.how == "disk full":
            raise OSError(errno.ENOSPC, "No space left on device")

    def __call__(self, shard: Shard) -> Part:
        rows = shard.payload["rows"]
        if self.how == "die together":
            Light.now += 1
            time.sleep(0.3)
            with (self.once.parent / "at-once").open("a") as file:
                file.write(f"{Light.now}\n")
            Light.now -= 1
        if self.how == "slow":
            time.sleep(1.0)
        if self.sick & set(rows):
            if self.how == "die once" and not self.once.exists():
                self.once.write_text("")
                strike("die")
            elif self.how != "die once":
                self._fail()
        lost = shard.payload.get("poison", 0)
        table = pa.table({"id": [str(row) for row in rows]})
        return Part(table=table, rows_in=len(rows) + lost, dropped={"poison": lost} if lost else {})

    def _fail(self) -> None:
        from sparring.stages.errors import EngineFault

        try:
            strike(self.how)
        except RuntimeError as error:
            raise EngineFault(f"the engine failed: {error}") from None
