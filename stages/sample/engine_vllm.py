"""vLLM, offline, in this process: one `LLM.generate` a shard, n = K, so that K responses share their prompt's prefill.

How it is set up is said in stages/vllm.py. On the CPU there is no chunked prefill where sampling is reproducible: with
per-request seeds the CPU model runner dies on a prompt that is cut in two ("CPU Generator does not use offset").

vLLM gives child i of a request the seed + i (v1/engine/parallel_sampling.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparring.stages.sample.engine import Sampled, Settings, finish_of
from sparring.stages.vllm import EVERYWHERE, import_vllm, kept, on_cpu, on_gpus

LATER: dict[str, Any] = {"k": 1, "max_tokens": 1, "temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "logprobs": False}
"""What comes with each call: engines that differ in these alone are one."""


class VllmEngine:
    """One engine on `cpus` cores, or on `gpus` GPUs as one tensor-parallel group."""

    def __init__(self, folder: Path, chosen: Settings) -> None:
        self.chosen = chosen
        self.llm = _loaded(folder, replace(chosen, **LATER, stop=chosen.stop and ("",)))

    def generate(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[Sampled]]:
        """Return K responses for each prompt.

        Where sampling is reproducible the prefix cache starts empty, so that no shard depends on another.
        """
        if self.chosen.reproducible and not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests of the last shard are still running")
        outputs = self.llm.generate(
            [{"prompt_token_ids": ids} for ids in prompt_ids], [self._params(seed) for seed in seeds], use_tqdm=False
        )
        return [
            [self._sampled(child, seed) for child in sorted(output.outputs, key=lambda child: child.index)]
            for output, seed in zip(outputs, seeds, strict=True)
        ]

    def _sampled(self, child: Any, seed: int) -> Sampled:
        ids = list(child.token_ids)
        logprobs = [step[i].logprob for i, step in zip(ids, child.logprobs, strict=True)] if child.logprobs else None
        return Sampled(
            ids,
            finish_of(ids, child.finish_reason, self.chosen.stop_ids),
            seed + child.index if self.chosen.reproducible else None,
            logprobs,
        )

    def _params(self, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=self.chosen.k,
            temperature=self.chosen.temperature,
            top_p=self.chosen.top_p,
            min_p=self.chosen.min_p,
            max_tokens=self.chosen.max_tokens,
            seed=seed if self.chosen.reproducible else None,
            stop=list(self.chosen.stop) or None,
            stop_token_ids=list(self.chosen.stop_ids),
            detokenize=bool(self.chosen.stop),
            logprobs=0 if self.chosen.logprobs else None,
        )


def _loaded(folder: Path, chosen: Settings) -> Any:
    """Return the engine, the one in memory when the next step needs the same: how it samples comes with each call."""

    def make() -> Any:
        llm = import_vllm(chosen.cpus)
        return llm(str(folder), **arguments_of(chosen))

    return kept((folder, chosen), make)


def arguments_of(chosen: Settings) -> dict[str, Any]:
    """Return the arguments of vLLM; the user's own win over ours."""
    return {
        "dtype": chosen.dtype,
        "max_model_len": chosen.max_model_len,
        "skip_tokenizer_init": not chosen.stop,
        **EVERYWHERE,
        # Engines that share a seed would draw the same numbers for different prompts.
        "seed": 0 if chosen.reproducible else int.from_bytes(os.urandom(4), "big") >> 1,
        **_hardware(chosen),
        **json.loads(chosen.engine_args),
    }


def _hardware(chosen: Settings) -> dict[str, Any]:
    if chosen.gpus:
        return on_gpus(chosen.gpus, chosen.gpu_memory)
    return {**on_cpu(chosen.max_model_len, chosen.kv_cache_gb), "enable_chunked_prefill": not chosen.reproducible}
