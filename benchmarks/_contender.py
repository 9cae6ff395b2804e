"""One contender of sampling in a process of its own: `_contender.py NAME JOBS`, JOBS a pickled {case: Job}; _rounds.py.

All contenders get the same prompts as token ids in the same order, the same sampling, dtype, context length, key-value
cache and cores, and run vLLM in their own process.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks._rounds import Ways, serve
from sparring.pipeline.store.parts import write_part
from sparring.stages.sample.config import SamplerConfig
from sparring.stages.sample.deal import response_seed
from sparring.stages.sample.stage import shards
from sparring.stages.step import Job, Shard

Way = Callable[[Job], int]
"""Samples a job's prompts once; returns the tokens."""
BATCH = 8
"""Prompts that `generate` of transformers gets at once: it takes them, K times each, as one padded batch."""
END = 2


def prompt_ids(job: Job) -> list[list[int]]:
    """Return the prompts in the order in which the step samples them."""
    column = job.inputs["prompts"].table(1)["prompt_ids"].to_pylist()
    return [column[row] for row in _shard(job).payload["rows"]]


def official(jobs: dict[str, Job]) -> dict[str, Way]:
    """The published scripts' way: K passes, one response each, vLLM's defaults but for what the CPU needs.

    In a real run a pass is over more prompts than the cache holds, so that none is left of it by the next pass; here
    the prefix cache is emptied between passes to the same effect. `cached` leaves it.
    """
    llm = _llm(next(iter(jobs.values())), enable_chunked_prefill=False)

    def passes(job: Job, *, cached: bool) -> int:
        import torch

        llm.reset_prefix_cache()
        responses: list[list[str]] = []
        tokens = 0
        for p in range(job.settings.sampler.k):
            if not cached:
                llm.reset_prefix_cache()
            random.seed(50 * p)
            np.random.seed(50 * p)
            torch.manual_seed(50 * p)
            outputs = _generate(llm, job, [50 * p] * _rows(job), n=1)
            responses.append([output.outputs[0].text for output in outputs])
            tokens += _count(outputs)
        return tokens

    return {
        "official": lambda job: passes(job, cached=False),
        "official, cached": lambda job: passes(job, cached=True),
    }


def bare(jobs: dict[str, Job]) -> dict[str, Way]:
    """`LLM.generate(n=K)` with our seeds and our engine settings: no detokenizing, no files."""
    from sparring.stages.vllm import BATCHED_TOKENS, BLOCK

    llm = _llm(
        next(iter(jobs.values())),
        enable_chunked_prefill=False,
        max_num_batched_tokens=BATCHED_TOKENS,
        block_size=BLOCK,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )

    def once(job: Job) -> int:
        llm.reset_prefix_cache()
        column = job.inputs["prompts"].table(1)["id"].to_pylist()
        payload = _shard(job).payload
        seeds = [response_seed(job.settings.seed, column[row], 0) for row in payload["rows"]]
        return _count(_generate(llm, job, seeds, n=job.settings.sampler.k, detokenize=False))

    return {"bare": once}


def ours(jobs: dict[str, Job]) -> dict[str, Way]:
    """A shard as an actor does it: prompts read, sampled, decoded, written and hashed."""
    from sparring.stages.sample.stage import Sampler

    samplers = {job.fingerprint: Sampler(job) for job in jobs.values()}

    def once(job: Job) -> int:
        shard = _shard(job)
        part = samplers[job.fingerprint](shard)
        return int(write_part(job, shard, part, 0.0)["stats"]["tokens"])

    return {"ours": once}


def unseeded(jobs: dict[str, Job]) -> dict[str, Way]:
    """`ours` with reproducible=False, and bare vLLM on that engine: no seeds, chunked prefill."""
    from sparring.stages.sample.stage import Sampler

    free = {name: _unseeded(job) for name, job in jobs.items()}
    ways = ours(free)
    llm = Sampler(next(iter(free.values()))).engine.queue.llm  # type: ignore[attr-defined]

    def once(job: Job) -> int:
        llm.reset_prefix_cache()
        return _count(_generate(llm, job, [None] * _rows(job), n=job.settings.sampler.k, detokenize=False))

    def ours_without_seeds(job: Job) -> int:
        llm.reset_prefix_cache()
        return ways["ours"](_unseeded(job))

    return {"ours, no seeds": ours_without_seeds, "bare, no seeds": once}


def transformers(jobs: dict[str, Job]) -> dict[str, Way]:
    """`model.generate(num_return_sequences=K)` of transformers, `BATCH` prompts at once, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM

    job = next(iter(jobs.values()))
    torch.set_num_threads(job.workers.cpus)
    model: Any = AutoModelForCausalLM.from_pretrained(
        job.inputs["policy"].root, dtype=torch.float32, local_files_only=True
    )

    def batch(chosen: Sequence[list[int]], sampler: SamplerConfig) -> int:
        width = max(map(len, chosen))
        ids = torch.tensor([[END] * (width - len(row)) + row for row in chosen])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in chosen])
        found = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            num_return_sequences=sampler.k,
            temperature=sampler.temperature,
            top_p=sampler.top_p,
            top_k=0,
            max_new_tokens=sampler.max_tokens,
        )
        rows = found[:, width:].tolist()
        return sum(row.index(END) + 1 if END in row else len(row) for row in rows)  # up to the first end of turn

    def once(job: Job) -> int:
        ids = prompt_ids(job)
        torch.manual_seed(0)
        return sum(batch(ids[i : i + BATCH], job.settings.sampler) for i in range(0, len(ids), BATCH))

    return {"transformers": once}


CONTENDERS = {"official": official, "bare": bare, "ours": ours, "unseeded": unseeded, "transformers": transformers}


def _shard(job: Job) -> Shard:
    return shards(job)[0]


def _rows(job: Job) -> int:
    return len(_shard(job).payload["rows"])


def _unseeded(job: Job) -> Job:
    free = replace(job.settings.sampler, reproducible=False)
    settings = replace(job.settings, sampler=free)
    return replace(job, settings=settings, out=job.out.with_name(job.out.name + "-free"))


def _llm(job: Job, **more: Any) -> Any:
    from sparring.stages.vllm import import_vllm

    return import_vllm(job.workers.cpus)(
        str(job.inputs["policy"].root),
        dtype=job.settings.sampler.dtype,
        max_model_len=job.settings.max_model_len,
        kv_cache_memory_bytes=job.settings.hardware.kv_cache_gb << 30,
        enforce_eager=True,
        **more,
    )


def _generate(llm: Any, job: Job, seeds: Sequence[int | None], **more: Any) -> Any:
    from vllm import SamplingParams

    chosen = [
        SamplingParams(
            temperature=job.settings.sampler.temperature,
            top_p=job.settings.sampler.top_p,
            max_tokens=job.settings.sampler.max_tokens,
            stop_token_ids=[END],
            seed=seed,
            **more,
        )
        for seed in seeds
    ]
    return llm.generate([{"prompt_token_ids": ids} for ids in prompt_ids(job)], chosen, use_tqdm=False)


def _count(outputs: Any) -> int:
    return sum(len(one.token_ids) for output in outputs for one in output.outputs)


def main(name: str, path: str) -> None:
    """Load, warm up, then answer."""

    def counted(jobs: dict[str, Job]) -> Ways:
        return {way: partial(_tokens, sample) for way, sample in CONTENDERS[name](jobs).items()}

    serve({name: counted}, name, path)


def _tokens(sample: Way, job: Job) -> dict[str, int]:
    return {"tokens": sample(job)}


if __name__ == "__main__":
    main(*sys.argv[1:])
