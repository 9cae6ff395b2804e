"""Configuration of the hardware group: where steps run, with how many workers, and how fast they are expected to be.

All of it is runtime, in no fingerprint.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from sparring.stages.errors import ConfigError
from sparring.stages.fields import Count, NonNegative, OnlyIf, Positive, Rate, Seconds, Size
from sparring.stages.step import Workers

SLOW_ENGINE, SLOW_START_S = 1000.0, 120.0
"""Tokens/s and seconds until it has loaded of a slow engine on a GPU: for deadlines, where `expect` has no numbers."""
OWN_ENGINES = "with sampler=vllm or transformers: servers have their own engines"


def _own_engines(_: Any, config: Any) -> bool:
    return bool(config.sampler.engine != "server")


def _vllm_on_cpu(hardware: Any, config: Any) -> bool:
    return config.sampler.engine == "vllm" and not hardware.engine_gpus


def _vllm_on_gpus(hardware: Any, config: Any) -> bool:
    return config.sampler.engine == "vllm" and bool(hardware.engine_gpus)


RATES = ("sample_tokens_per_s", "reference_tokens_per_s", "train_tokens_per_s", "embed_responses_per_s", "start_s")
"""Fields of `expect` that are null only with an accelerator."""


@dataclass(frozen=True, kw_only=True)
class ExpectConfig:
    """What `sparring plan` estimates with before the store holds a measured step.

    A rate that is null is estimated from the accelerator's data sheet (pipeline/planning/roofline.py).
    """

    accelerator: Literal["a100", "h100", "h200"] | None = None
    """GPU from whose data sheet the rates that are null are estimated; null: none is null but score_duels_per_s."""
    sample_tokens_per_s: Positive | None
    """Of one engine."""
    reference_tokens_per_s: Positive | None
    """Of one annotator."""
    train_tokens_per_s: Positive | None
    """Of one training worker."""
    score_duels_per_s: Positive | None
    """Ordered pairs of responses that one annotator judges, with an oracle other than the embedded ones, which take
    seconds. null: PairRM's are estimated from the accelerator; of other oracles no time is estimated."""
    embed_responses_per_s: Positive | None
    """Of one annotator."""
    parameters: Count | None
    """Weights of the policy that these tokens/s were measured with: a policy with twice as many is expected to be half
    as fast. null: tokens/s are taken as they are for every policy."""
    start_s: NonNegative | None
    """Seconds until a step's workers have loaded their models."""
    basis: str
    """Where these numbers come from; shown beside the estimates."""

    def __post_init__(self) -> None:
        missing = [name for name in RATES if getattr(self, name) is None]
        if missing and self.accelerator is None:
            raise ConfigError(
                f"hardware.expect.{missing[0]} is null: give a number, or set hardware.expect.accelerator."
            )


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Where steps run. Runtime only: in no fingerprint."""

    name: str
    """Shown beside the estimates of `sparring plan`."""
    engines: Annotated[Count | None, OnlyIf(_own_engines, OWN_ENGINES)]
    """Sampling engines side by side; null: as many as there are GPUs for, or, without GPUs, cores for."""
    cores_per_engine: Annotated[Count | None, OnlyIf(_own_engines, OWN_ENGINES)]
    """null: the machine's cores, divided by the engines."""
    engine_gpus: Size
    """GPUs of each: the policy's tensor_parallel; 0 on the CPU."""
    kv_cache_gb: Annotated[Count, OnlyIf(_vllm_on_cpu, "with sampler=vllm without GPUs")] = 2
    """Memory for keys and values of each engine, in GiB."""
    gpu_memory: Annotated[Rate, OnlyIf(_vllm_on_gpus, "with sampler=vllm on GPUs")] = 0.9
    """Share of each GPU's memory that an engine takes."""
    gpu_gb: Annotated[Positive | None, OnlyIf(lambda hardware, _: hardware.gpus > 0, "with GPUs")] = None
    """Memory of a GPU, in GiB, that the plan compares with what steps need; null: what nvidia-smi says here."""
    annotators: Count | None
    """Processes of score, embed, reference and logprobs; null: as many as there are GPUs for, 1 without GPUs."""
    annotator_cpus: Count | None
    """Cores of each; null: the machine's cores, divided by the annotators."""
    annotator_gpus: Size
    """GPUs of each."""
    workers: Count | None
    """Training workers: ranks of ZeRO-3; null: as many as there are GPUs for and trainer.global_batch can be divided
    by, 1 without GPUs."""
    worker_cpus: Count | None
    """Cores of each; null: the machine's cores, divided by the workers."""
    worker_gpus: Size
    """GPUs of each."""
    micro_batch: Count | Literal["auto"]
    """Pairs per forward pass of a training worker; auto: measured when training begins."""
    offload: Literal["none", "optimizer", "all"]
    """What ZeRO-3 keeps in the host's memory."""
    max_failures: Size
    """Times that a shard, the loading of models, a light task or a training that failed is tried again; when it fails
    once more, the step fails."""
    shard_deadline_s: Seconds | None
    """Seconds that a shard of sampling may take; then its engine is ended and the shard is tried again. null: ten times
    the seconds that `expect` gives for its longest responses, or 1,000 tokens/s where it gives none."""
    usd_per_hour: NonNegative | None
    """Price of an hour of this hardware, from which the plan estimates a cost; null: the plan shows hours only."""
    expect: ExpectConfig
    dashboard: bool = False
    """Whether the Ray that a run starts has its dashboard, on this machine's loopback alone: needs pip install
    'ray[default]'. A cluster that is joined has its own."""

    @property
    def gpus(self) -> int:
        """Most GPUs that are in use at once; a count that is null is one."""
        engines, annotators, workers = (count or 1 for count in (self.engines, self.annotators, self.workers))
        return max(engines * self.engine_gpus, annotators * self.annotator_gpus, workers * self.worker_gpus)

    def on(self, gpus: Sequence[int], global_batch: int) -> HardwareConfig:
        """Return it with annotators and workers, where they are null, for machines with these GPUs each.

        `engines: null` stays: a pool takes what GPUs there are, those of machines that join later too.
        """
        ranks = max(1, _processes(gpus, self.worker_gpus))
        return replace(
            self,
            annotators=self.annotators or max(1, _processes(gpus, self.annotator_gpus)),
            workers=self.workers or max(n for n in range(1, ranks + 1) if global_batch % n == 0),
        )

    def engine_workers(self, most_tokens: float) -> Workers:
        """Return the processes of the sampling engines. most_tokens: of a shard whose responses are all the longest."""
        count = self.engines or 0
        if self.engines is None and not self.engine_gpus:
            count = _share(self.cores_per_engine) if self.cores_per_engine else 1
        expected_s = (self.expect.start_s or SLOW_START_S) + most_tokens / (
            self.expect.sample_tokens_per_s or SLOW_ENGINE
        )
        return Workers(
            count=count,
            cpus=self.cores_per_engine or _share(count or 1),
            gpus=self.engine_gpus,
            max_failures=self.max_failures,
            deadline_s=self.shard_deadline_s or 10 * expected_s,
        )

    def annotator_workers(self) -> Workers:
        """Return the processes of score, embed, reference and logprobs."""
        return Workers(
            count=self.annotators or 1,
            cpus=self.annotator_cpus or _share(self.annotators or 1),
            gpus=self.annotator_gpus,
            max_failures=self.max_failures,
        )

    def training_workers(self) -> Workers:
        """Return the ranks of ZeRO-3."""
        return Workers(
            count=self.workers or 1,
            cpus=self.worker_cpus or _share(self.workers or 1),
            gpus=self.worker_gpus,
            max_failures=self.max_failures,
        )


def _share(processes: int) -> int:
    return max(1, (os.cpu_count() or 1) // processes)


def _processes(gpus: Sequence[int], each: int) -> int:
    """Return how many processes with `each` GPUs machines hold, none across two machines; 0 where they take none."""
    return sum(count // each for count in gpus) if each else 0
