"""Configuration of the hardware group: where steps run, with how many workers, and what they are expected to do.

All of it is runtime, in no fingerprint.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from sparring.stages.fields import NO_BOOL, Count, NonNegative, OnlyIf, Positive, Seconds, Size
from sparring.stages.step import Workers

OWN_ENGINES = "with sampler=vllm or transformers: servers have their own engines"


def _own_engines(_: Any, config: Any) -> bool:
    return bool(config.sampler.engine != "server")


def _vllm_on_cpu(hardware: Any, config: Any) -> bool:
    return config.sampler.engine == "vllm" and not hardware.engine_gpus


def _vllm_on_gpus(hardware: Any, config: Any) -> bool:
    return config.sampler.engine == "vllm" and bool(hardware.engine_gpus)


@dataclass(frozen=True, kw_only=True)
class ExpectConfig:
    """What `sparring plan` estimates with before the store holds a measured step."""

    sample_tokens_per_s: Positive
    """Of an engine."""
    reference_tokens_per_s: Positive
    """Of an annotator."""
    train_tokens_per_s: Positive
    """Of a training worker."""
    score_duels_per_s: Positive | None
    """Ordered pairs of responses that an oracle that is no embedded one judges; null: no time is estimated."""
    embed_responses_per_s: Positive
    """Of an annotator."""
    parameters: Count | None
    """Of the policy that the tokens/s are of: those of another one are in inverse proportion; null: they are not."""
    start_s: NonNegative
    """Until a step's workers have loaded their models."""
    basis: str
    """Where these numbers come from, said beside what is estimated with them."""


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Runtime only: where things run. In no fingerprint."""

    name: str
    """Shown beside what is estimated with `expect`."""
    engines: Annotated[Count | None, OnlyIf(_own_engines, OWN_ENGINES)]
    """null: as many as the GPUs hold, or the cores at cores_per_engine."""
    cores_per_engine: Annotated[Count | None, OnlyIf(_own_engines, OWN_ENGINES)]
    """null: the machine's cores are shared by the engines."""
    engine_gpus: Size
    """The policy's tensor_parallel; 0 on the CPU."""
    kv_cache_gb: Annotated[Count, OnlyIf(_vllm_on_cpu, "with sampler=vllm without GPUs")] = 2
    gpu_memory: Annotated[
        float, Field(gt=0, le=1, allow_inf_nan=False), NO_BOOL, OnlyIf(_vllm_on_gpus, "with sampler=vllm on GPUs")
    ] = 0.9
    annotators: Count
    """Processes of score, embed, reference and logprobs."""
    annotator_cpus: Count | None
    """Cores of each; null: the machine's are shared."""
    annotator_gpus: Size
    """GPUs of each."""
    workers: Count
    """Training workers: ranks of ZeRO-3."""
    worker_cpus: Count | None
    """Cores of each; null: the machine's are shared."""
    worker_gpus: Size
    """GPUs of each."""
    micro_batch: Count | Literal["auto"]
    """Pairs per forward pass of a training worker; auto measures when training begins."""
    offload: Literal["none", "optimizer", "all"]
    """What ZeRO-3 keeps in the host's memory."""
    max_failures: Size
    """Times that a shard, or a training, is done again after its worker failed; then the step fails."""
    shard_deadline_s: Seconds | None
    """A shard of sampling that takes longer has its engine ended and is done again; null: ten times what it may take
    by `expect`."""
    usd_per_hour: NonNegative | None
    """What all of it costs an hour, for the plan's bill; null: hours alone."""
    expect: ExpectConfig

    @property
    def gpus(self) -> int:
        """GPUs that it keeps busy at once, where it says how many engines there are."""
        engines = (self.engines or 1) * self.engine_gpus
        return max(engines, self.annotators * self.annotator_gpus, self.workers * self.worker_gpus)

    def engine_workers(self, most_tokens: float) -> Workers:
        """Return the engines that sample. most_tokens: of a shard, all its responses at their longest."""
        many = self.engines or 0
        if self.engines is None and not self.engine_gpus:
            many = max(1, _cores() // (self.cores_per_engine or _cores()))
        expected_s = self.expect.start_s + most_tokens / self.expect.sample_tokens_per_s
        return Workers(
            count=many,
            cpus=self.cores_per_engine or _share(many or 1),
            gpus=self.engine_gpus,
            max_failures=self.max_failures,
            deadline_s=self.shard_deadline_s or 10 * expected_s,
        )

    def annotator_workers(self) -> Workers:
        """Return the processes of score, embed, reference and logprobs."""
        return Workers(
            count=self.annotators,
            cpus=self.annotator_cpus or _share(self.annotators),
            gpus=self.annotator_gpus,
            max_failures=self.max_failures,
        )

    def training_workers(self) -> Workers:
        """Return the ranks of ZeRO-3."""
        return Workers(
            count=self.workers,
            cpus=self.worker_cpus or _share(self.workers),
            gpus=self.worker_gpus,
            max_failures=self.max_failures,
        )


def _cores() -> int:
    return os.cpu_count() or 1


def _share(processes: int) -> int:
    return max(1, _cores() // processes)
