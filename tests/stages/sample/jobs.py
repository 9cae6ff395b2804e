"""Jobs of the sample stage over real files and folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sparring.pipeline.store.files import external
from sparring.stages.sample import prompts
from sparring.stages.sample.config import PROMPTS, SAMPLE
from sparring.stages.step import Input, Job, Part
from tests import settings
from tests.artifacts import as_input, as_job, run_step

SAMPLING: dict[str, Any] = {"dtype": "float32", "k": 3, "max_tokens": 12, "shard_rows": 4, "rows": 8, "slices": None}


def jsonl(path: Path, rows: Sequence[Any], column: str = "prompt") -> Path:
    """Write a prompts file, one {column: row} a line."""
    path.write_text("".join(json.dumps({column: row}, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def prompts_job(source: Path, policy: Path, **changes: Any) -> Job:
    """A `prompts` job over a file."""
    chosen = settings.prompts(**{"column": "prompt", "heldout": 2, "limit": None, "max_tokens": 400, **changes})
    return as_job(PROMPTS, chosen, [external("source", source), external("policy", policy)], source.parent)


def run_prompts(job: Job) -> tuple[list[pa.Table], list[Part], dict[str, Any]]:
    """Run the `prompts` step: tables, parts, summary."""
    return run_step(job, prompts.PromptRenderer(job), prompts.shards, prompts.finish)


def prompts_input(source: Path, policy: Path, **changes: Any) -> Input:
    """Run the `prompts` step and open its artifact as the input of `sample`."""
    tables, _, summary = run_prompts(prompts_job(source, policy, **changes))
    return as_input("prompts", source.parent / "prompts", tables, summary)


def sample_job(prompts: Input, policy: Path, **changes: Any) -> Job:
    """A `sample` job on the CPU in fp32."""
    chosen = settings.sample(**{**SAMPLING, **changes})
    return as_job(SAMPLE, chosen, [prompts, external("policy", policy)], policy.parent)
