"""vLLM, offline, in this process: a request a prompt, n = K, so that K responses share their prompt's prefill.

stages/vllm.py sets it up. What `sampler.reproducible` means:
- On the CPU, shards are sampled one at a time, each with an empty prefix cache: a shard's bytes depend on no other.
  There is no chunked prefill: with per-request seeds the CPU model runner dies on a prompt that is cut in two ("CPU
  Generator does not use offset").
- On GPUs, vLLM's batch-invariant mode: a response depends on its prompt and seed alone, whatever shares its batch.
Else, and on GPUs, the requests of several shards share the engine (request_queue.py). No GPU has run either.

vLLM gives child i of a request the seed + i (v1/engine/parallel_sampling.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparring.stages import loaded
from sparring.stages.sample.engine import EngineSettings, Sampled, finish_of
from sparring.stages.sample.request_queue import RequestQueue
from sparring.stages.step import Workers
from sparring.stages.vllm import EVERYWHERE, import_vllm, on_cpu, on_gpus, same_name

PER_CALL: dict[str, Any] = {
    "k": 2, "max_tokens": 1, "temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "logprobs": False, "shard_rows": 1,
}  # fmt: skip
"""Settings that are sent with each call, at any values that the sampler's model allows (k is 2 or more): engines that
differ in these only are the same engine."""


def at_start(settings: EngineSettings) -> EngineSettings:
    """Return the settings with which the engine is started: those that are sent with each call have fixed values."""
    stop = ("any",) if settings.sampler.stop else ()
    sampler, workers = replace(settings.sampler, **PER_CALL, stop=stop), settings.workers
    processes = Workers(cpus=workers.cpus, gpus=workers.gpus)
    return replace(settings, sampler=sampler, workers=processes, stop_ids=(), policy_name="")


class VllmEngine:
    """One engine on `cpus` cores, or on `gpus` GPUs as one tensor-parallel group.

    An engine in memory serves the next step too if that one starts with the same settings.
    """

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        self.settings = settings
        start = at_start(settings)

        def make() -> RequestQueue:
            make_llm = import_vllm(
                settings.workers.cpus, batch_invariant=settings.sampler.reproducible and settings.workers.gpus > 0
            )
            path = same_name(folder) if settings.workers.gpus else folder  # on the CPU nothing is compiled
            return RequestQueue(make_llm(str(path), **arguments_of(start)))

        self.queue = loaded.kept("policy engine", repr((folder, start)), make)
        self.alone = settings.sampler.reproducible and not settings.workers.gpus

    def generate(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[Sampled]]:
        """Return K responses for each prompt; several threads may ask, but for an engine that samples a shard alone."""
        from vllm import SamplingParams

        sampler, llm = self.settings.sampler, self.queue.llm
        if self.alone and not llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests of the last shard are still running")
        params = [
            SamplingParams(
                n=sampler.k,
                temperature=sampler.temperature,
                top_p=sampler.top_p,
                min_p=sampler.min_p,
                max_tokens=sampler.max_tokens,
                seed=seed if sampler.reproducible else None,
                stop=list(sampler.stop) or None,
                stop_token_ids=list(self.settings.stop_ids),
                detokenize=bool(sampler.stop),
                logprobs=0 if sampler.logprobs else None,
            )
            for seed in seeds
        ]
        prompts = [{"prompt_token_ids": ids} for ids in prompt_ids]
        outputs = llm.generate(prompts, params, use_tqdm=False) if self.alone else self.queue.generate(prompts, params)
        return [
            [self._sampled(child, seed) for child in sorted(output.outputs, key=lambda child: child.index)]
            for output, seed in zip(outputs, seeds, strict=True)
        ]

    def _sampled(self, child: Any, seed: int) -> Sampled:
        ids = list(child.token_ids)
        logprobs = [step[i].logprob for i, step in zip(ids, child.logprobs, strict=True)] if child.logprobs else None
        return Sampled(
            ids,
            finish_of(ids, child.finish_reason, self.settings.stop_ids),
            seed + child.index if self.settings.sampler.reproducible else None,
            logprobs,
        )


def arguments_of(settings: EngineSettings) -> dict[str, Any]:
    """Return the arguments of vLLM; the user's own win over ours."""
    if settings.workers.gpus:
        hardware = on_gpus(settings.workers.gpus, settings.gpu_memory)
    else:
        hardware = on_cpu(settings.max_model_len, settings.kv_cache_gb)
        hardware["enable_chunked_prefill"] = not settings.sampler.reproducible
    return {
        "dtype": settings.sampler.dtype,
        "max_model_len": settings.max_model_len,
        "skip_tokenizer_init": not settings.sampler.stop,
        **EVERYWHERE,
        # Engines that share a seed would draw the same numbers for different prompts.
        "seed": 0 if settings.sampler.reproducible else int.from_bytes(os.urandom(4), "big") >> 1,
        **hardware,
        **settings.engine_args,
    }
