"""Jobs of the sample stage over real files and folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from sparring.pipeline.artifact import external
from sparring.stages.sample import prompts
from sparring.stages.sample.config import PROMPTS, SAMPLE
from sparring.stages.step import Input, Job, Part
from tests.artifacts import as_input, as_job, run_step

RUNTIME: dict[str, Any] = {
    "actors": 1,
    "cpus": 1,
    "gpus": 0,
    "kv_cache_gb": 1,
    "gpu_memory": 0.9,
    "max_model_len": 512,
    "engine_args": {},
    "urls": (),
    "max_failures": 2,
    "deadline_s": 600.0,
}
SAMPLING: dict[str, Any] = {
    "engine": "vllm",
    "dtype": "float32",
    "k": 3,
    "max_tokens": 12,
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "stop": (),
    "stop_tokens": (),
    "logprobs": False,
    "reproducible": True,
    "engine_args": {},
    "seed": 0,
    "shard_rows": 4,
    "split": "train",
    "slice": 0,
    "rows": 8,
    "slices": None,
}


def jsonl(path: Path, rows: Sequence[Any], column: str = "prompt") -> Path:
    """Write a prompts file, one {column: row} a line."""
    path.write_text("".join(json.dumps({column: row}, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def prompts_job(source: Path, policy: Path, **changes: Any) -> Job:
    """A `prompts` job over a file."""
    identity = {"column": "prompt", "heldout": 2, "limit": None, "max_tokens": 400, "on_empty": "refuse", **changes}
    return as_job(PROMPTS, identity, [external("source", source), external("policy", policy)], source.parent)


def run_prompts(job: Job) -> tuple[list[pa.Table], list[Part], dict[str, Any]]:
    """Run the `prompts` step: tables, parts, summary."""
    return run_step(job, prompts.Cleaner(job), prompts.shards, prompts.finish)


def prompts_input(source: Path, policy: Path, **changes: Any) -> Input:
    """Run the `prompts` step and open its artifact as the input of `sample`."""
    tables, _, summary = run_prompts(prompts_job(source, policy, **changes))
    return as_input("prompts", source.parent / "prompts", tables, summary)


def sample_job(prompts: Input, policy: Path, **changes: Any) -> Job:
    """A `sample` job on the CPU in fp32."""
    identity = {**SAMPLING, **changes}
    job = as_job(SAMPLE, identity, [prompts, external("policy", policy)], policy.parent)
    return replace(job, runtime=RUNTIME)
