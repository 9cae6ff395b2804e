"""Jobs of the steps score, embed, pairs and calibrate for benchmarks: identities as the profiles' defaults are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import _jobs
from benchmarks._annotate_texts import Texts
from sparring.pipeline.store.files import content_digest
from sparring.pipeline.store.parts import write_part
from sparring.stages.annotate.config import (
    CALIBRATE,
    EMBED,
    PAIRS,
    SCORE,
    CalibrateSettings,
    EmbedSettings,
    JudgeConfig,
    PairsSettings,
    ScoreSettings,
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


def settings(role: str, dtype: str = "float32", floor_quantile: float | None = None) -> Any:
    """Return the settings of a step; dtype is PairRM's."""
    config = _jobs.default()
    linear: Any = config.gate
    gate = replace(linear, floor_quantile=floor_quantile)
    return {
        "scores": ScoreSettings(oracle=JudgeConfig(kind="pairrm", options={"dtype": dtype}), anchors=None, seed=0),
        "embeddings": EmbedSettings(encoder=config.encoder),
        "pairs": PairsSettings(win_rate="matrix", selection=config.selection, seed=0, gated=None),
        "targets": CalibrateSettings(gate=gate, seed=0, dealt_over="pairs"),
    }[role]


def job(role: str, inputs: Sequence[Input], folder: Path, dtype: str = "float32") -> Job:
    """Return the job that makes `role`, in a folder of that name."""
    return _jobs.step_job(SPECS[role], settings(role, dtype), list(inputs), folder / role)


def made(job: Job, worker: Callable[[Shard], Part]) -> tuple[Input, list[dict[str, Any]]]:
    """Do every shard of a job here, as an actor does it; return the artifact and the parts' records."""
    records = [write_part(job, shard, worker(shard), 0.0) for shard in resolve(job.spec.shards)(job)]
    files = tuple(File(**record["file"]) for record in records)
    return Input(role=job.out.name, root=job.out, digest=content_digest(files), files=files), records
