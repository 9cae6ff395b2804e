"""Jobs of the steps score, embed, pairs and calibrate for benchmarks: identities as the profiles' defaults are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import _jobs
from benchmarks._annotate_texts import Texts
from sparring.pipeline.artifact import content_digest, write_part
from sparring.stages.annotate.config import (
    CALIBRATE,
    EMBED,
    PAIRS,
    SCORE,
    EmbedIdentity,
    GateIdentity,
    OracleIdentity,
    PairsIdentity,
    ScoreIdentity,
    ScoreRuntime,
)
from sparring.stages.step import File, Input, Job, Part, Shard, resolve


@dataclass(frozen=True)
class Case:
    """Texts, and what their shards of score, embed and calibrate are made from."""

    texts: Texts
    samples: Input
    pairs: Input
    judge: Input
    encoder: Input
    folder: Path


SPECS = {"scores": SCORE, "embeddings": EMBED, "pairs": PAIRS, "targets": CALIBRATE}
"""The step that makes the artifact of a role; `targets` is what calibrate makes."""


def identity(role: str, dtype: str = "float32", floor_quantile: float | None = None) -> dict[str, Any]:
    """Return the identity of a step; dtype is PairRM's."""
    oracle = OracleIdentity(kind="pairrm", options={"dtype": dtype})
    found: dict[str, Any] = {
        "scores": ScoreIdentity(oracle=oracle, anchors=None, seed=0),
        "embeddings": EmbedIdentity(window=256),
        "pairs": PairsIdentity(
            win_rate="matrix", selection="extremes", seed=0, gate=None, require_head_to_head=False, capped="keep"
        ),
        "targets": GateIdentity(
            name="linear",
            exponent=1.0,
            floor=0.0,
            floor_quantile=floor_quantile,
            ceil=1.0,
            ceil_quantile=None,
            scope="pairwise",
            seed=0,
            dealt_over="pairs",
        ),
    }
    return asdict(found[role])


def runtime() -> dict[str, Any]:
    """Return the CPU profile's runtime settings: one actor on all cores."""
    return asdict(ScoreRuntime(actors=1, cpus=os.cpu_count() or 1, gpus=0, max_failures=2, urls={}))


def job(role: str, inputs: Sequence[Input], folder: Path, dtype: str = "float32") -> Job:
    """Return the job that makes `role`, in a folder of that name."""
    return _jobs.step_job(SPECS[role], identity(role, dtype), runtime(), list(inputs), folder / role)


def made(job: Job, worker: Callable[[Shard], Part]) -> tuple[Input, list[dict[str, Any]]]:
    """Do every shard of a job here, as an actor does it; return the artifact and the parts' records."""
    records = [write_part(job, shard, worker(shard), 0.0) for shard in resolve(job.spec.shards)(job)]
    files = tuple(File(**record["file"]) for record in records)
    return Input(role=job.out.name, root=job.out, digest=content_digest(files), files=files), records
