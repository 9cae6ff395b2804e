"""One queue of requests for an engine, across shards: a shard is done when its last response is, and the engine never
waits for the longest response of a shard, as it does where it is given one shard at a time.

Threads ask, one for each shard under way; while there are requests, a thread of the queue's own steps the engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any, NamedTuple

from sparring.stages.sample.config import EngineSampler, SampleSettings
from sparring.stages.step import Job

FILL = 4
"""Responses of the shards under way, finished ones too, for each that an engine runs at once: of a shard that waits for
its longest response most have ended."""
MOST_AT_ONCE = 64
"""Shards under way in one engine: all of them are lost with it."""
RUNNING_ON_GPUS, RUNNING_ON_CPU = 1024, 256
"""Responses that vLLM runs at once by itself (max_num_seqs), on a GPU of 70 GB or more."""


def at_once(job: Job[SampleSettings]) -> int:
    """Return how many shards an engine samples at once: 1 where a shard's bytes may depend on no other."""
    sampler, on_gpus = job.settings.sampler, job.workers.gpus > 0
    if not isinstance(sampler, EngineSampler) or sampler.engine != "vllm" or (sampler.reproducible and not on_gpus):
        return 1
    running = sampler.engine_args.get("max_num_seqs") or (RUNNING_ON_GPUS if on_gpus else RUNNING_ON_CPU)
    return shards_at_once(running, sampler.shard_rows * sampler.k)


def shards_at_once(most_running: int, responses: int) -> int:
    """Return how many shards of so many responses keep an engine busy that runs `most_running` at once."""
    return min(MOST_AT_ONCE, math.ceil(FILL * most_running / responses))


class Asked(NamedTuple):
    """The prompts of one shard."""

    prompts: Sequence[Any]
    params: Sequence[Any]
    """vLLM's SamplingParams of each."""
    outputs: Sequence[Future[Any]]


class RequestQueue:
    """Shares vLLM's `LLM` among threads. An error of the engine ends every request, and the queue."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.asked: list[Asked] = []
        """What the engine does not have yet."""
        self.pending: dict[str, Future[Any]] = {}
        """Request of the engine, as its outputs name it -> who waits for it."""
        self.steps = False
        """Whether a thread steps the engine."""
        self.error: Exception | None = None
        self.lock = Lock()

    def generate(self, prompts: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        """Return vLLM's output for each prompt, in order, once all are finished."""
        import torch

        outputs: list[Future[Any]] = [Future() for _ in prompts]
        with self.lock:
            if self.error:
                raise self.error
            self.asked.append(Asked(prompts, params, outputs))
            if not self.steps:
                self.steps = True
                Thread(target=self._run, args=(torch.get_num_threads(),), daemon=True).start()
        return [output.result() for output in outputs]

    def _run(self, cpu_threads: int) -> None:
        import torch

        torch.set_num_threads(cpu_threads)  # each thread has a number of its own, and vLLM one for all
        try:
            while self._goes_on():
                for output in self.llm.llm_engine.step():
                    if output.finished:
                        self.pending.pop(output.request_id).set_result(output)
        except Exception as error:
            with self.lock:
                self.error = error
                left = [*self.pending.values(), *(future for asked in self.asked for future in asked.outputs)]
            for future in left:
                future.set_exception(error)

    def _goes_on(self) -> bool:
        """Hand what was asked to the engine; return whether it has requests."""
        with self.lock:
            while self.asked:
                self._add(self.asked[0])
                del self.asked[0]
            self.steps = bool(self.pending)
            return self.steps

    def _add(self, asked: Asked) -> None:
        try:
            names = self.llm.enqueue(asked.prompts, asked.params, use_tqdm=False)
        except Exception as error:  # the engine refuses a prompt, and takes none of these
            for future in asked.outputs:
                future.set_exception(error)
        else:  # its outputs have the id without the random ending that it adds
            self.pending.update(zip((name.rpartition("-")[0] for name in names), asked.outputs, strict=True))
