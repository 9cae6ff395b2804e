"""Jobs for benchmarks: tables as an artifact; of the step `sample`, prompts and the CPU profile's settings."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._random_policy import random_policy
from sparring.pipeline.artifact import content_digest
from sparring.pipeline.config import load
from sparring.pipeline.config.model import Config
from sparring.stages import fields
from sparring.stages.fingerprint import fingerprint
from sparring.stages.sample import embedded
from sparring.stages.sample.config import SampleSettings
from sparring.stages.sample.prompts import PROMPTS_SCHEMA, prompt_hash
from sparring.stages.step import File, Input, Job, StepSpec, Workers, sha256_file

LONG_WORDS = 740
"""Words of a long prompt: about 1,000 tokens of SmolLM2's."""


def policy_of(arguments: argparse.Namespace, folder: Path) -> Path:
    """Return the folder of the embedded policy; under --smallest of a tiny random one that is written there."""
    if not arguments.smallest:
        return embedded.policy_path()
    return random_policy("tiny", folder / "policy")


def starter_texts() -> list[str]:
    """Return the starter prompts, their last turns."""
    path = Path(embedded.__file__).with_name("starter.jsonl")
    return [json.loads(line)["messages"][-1]["content"] for line in path.read_text(encoding="utf-8").splitlines()]


def short_texts(count: int) -> list[str]:
    """Return every few starter prompts."""
    texts = starter_texts()
    return texts[:: max(1, len(texts) // count)][:count]


def long_texts(count: int) -> list[str]:
    """Return different stretches of all starter prompts, one after another and round again."""
    words = " ".join(starter_texts()).split()
    step = max(1, len(words) // count)
    return [" ".join((words + words)[i * step : i * step + LONG_WORDS]) for i in range(count)]


def rendered(texts: Sequence[str], policy: Path) -> list[dict[str, Any]]:
    """Return the rows that the step `prompts` would make of texts."""
    from sparring.stages.chat import load_chat

    chat = load_chat(policy)
    turns = [[{"role": "user", "content": text}] for text in texts]
    return [
        {"id": prompt_hash(messages)[:16], "messages": messages, "prompt_ids": chat.render(messages)}  # type: ignore[arg-type]
        for messages in turns
    ]


def prompts_artifact(folder: Path, parts: Iterable[Sequence[dict[str, Any]]]) -> Input:
    """Write training prompts as the artifact of the step `prompts`, without held-out ones, and open it."""
    sizes = []

    def tables() -> Iterator[pa.Table]:
        for rows in ([], *parts):
            sizes.append(len(rows))
            yield pa.Table.from_pylist(list(rows), schema=PROMPTS_SCHEMA)

    found = artifact("prompts", folder, tables())
    return replace(found, summary={"rows": sizes, "heldout": 0, "train": sum(sizes), "slices": [sum(sizes)]})


def artifact(role: str, folder: Path, tables: Iterable[pa.Table]) -> Input:
    """Write tables as the parts of an artifact and open it."""
    folder.mkdir(parents=True)
    files = []
    for index, table in enumerate(tables):
        path = folder / f"part-{index:05d}.parquet"
        pq.write_table(table, path, compression="zstd")
        files.append(File(name=path.name, path=path.name, sha256=sha256_file(path), bytes=path.stat().st_size))
    return Input(role=role, root=folder, digest=content_digest(files), files=tuple(files))


@cache
def default() -> Config:
    """Return the configuration whose settings are measured: on this machine's CPU, as the published scripts sample."""
    words = ["sampler=vllm", "sampler.k=5", "sampler.max_tokens=64", "sampler.shard_rows=256", "hardware.kv_cache_gb=1"]
    return load(["hardware=cpu", *words, "sampler.temperature=0.7", "sampler.top_p=0.9"])


def settings(max_model_len: int, **changes: Any) -> SampleSettings:
    """Return the settings of a sample step: one slice of everything; changes are of the sampler."""
    return SampleSettings(
        sampler=replace(default().sampler, **changes),
        stop_tokens=(),
        seed=0,
        split="train",
        slice=0,
        rows=None,
        slices=1,
        max_model_len=max_model_len,
        hardware=default().hardware,
    )


def step_job(spec: StepSpec, settings: Any, inputs: list[Input], out: Path, workers: Workers | None = None) -> Job:
    """Return a job of a step, named by what defines it; workers: one on all cores, where none are named."""
    names = {source.role: source.digest for source in inputs}
    return Job(
        spec=spec,
        fingerprint=fingerprint(spec.kind, spec.version, fields.identity(settings), names),
        settings=settings,
        workers=workers or Workers(cpus=os.cpu_count() or 1),
        inputs={source.role: source for source in inputs},
        out=out,
        attempt="bench",
        scratch=out.parent / "scratch",
    )
