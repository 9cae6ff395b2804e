"""What annotation costs beside its models at scale, with STAND-INS for the oracle and the encoder: the driver's memory
and the workers', and overhead, of score, embed, pairs and calibrate from the samples of an iteration.

The gate's floor is a quantile over the iteration, so that `calibrate` reads every similarity before its first shard.
The driver is a process of its own with the real Executor, on Ray started for it; it runs a tenth of the prompts, then
all of them: what grows with the prompts is the difference.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import _annotate_jobs, _jobs
from benchmarks._annotate_standin import SECONDS
from benchmarks._annotate_texts import Texts, samples_table
from benchmarks._bookkeeping import drive
from benchmarks._table import Row
from sparring.pipeline.artifact import content_digest
from sparring.pipeline.planning.plan import Plan, Step, Use
from sparring.stages import fields
from sparring.stages.annotate.config import CALIBRATE, EMBED, PAIRS, SCORE
from sparring.stages.fingerprint import fingerprint
from sparring.stages.step import Input, StepSpec, Workers

PART_ROWS = 256
WORDS = 200
"""Of a response; it has an id for each."""
VOCABULARY = 20_000
QUANTILE = 0.1
STANDINS = "benchmarks._annotate_standin"
STEPS: tuple[tuple[str, StepSpec, tuple[str, ...]], ...] = (
    ("scores", replace(SCORE, worker=f"{STANDINS}:StandInScorer"), ("samples",)),
    ("embeddings", replace(EMBED, worker=f"{STANDINS}:StandInEmbedder", prepare=""), ("samples",)),
    ("pairs", PAIRS, ("samples", "scores")),
    ("targets", CALIBRATE, ("pairs", "embeddings")),
)
"""Role of what a step makes, its spec, the roles of its inputs."""


def measure(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Run the steps on a tenth of the prompts, then on all."""
    parts = parts_of(arguments.prompts_at_scale, arguments.k)
    samples = _jobs.artifact("samples", folder / "at-scale", parts)
    few = samples.files[: max(1, round(samples.n_parts / 10))]
    tenth = replace(samples, files=few, digest=content_digest(few))
    small, whole = (drive(make_plan(of), folder / name, "end") for name, of in (("tenth", tenth), ("whole", samples)))
    assert (
        whole["steps"]["score"]["rows"]["out"]
        == whole["steps"]["calibrate"]["rows"]["in"]
        == arguments.prompts_at_scale
    )
    return rows_of(f"{arguments.prompts_at_scale} prompts, K={arguments.k}, stand-in oracle and encoder", small, whole)


def make_plan(samples: Input) -> Plan:
    """Return a plan of score, embed, pairs and calibrate from samples."""
    names, steps = {"samples": samples.digest}, {}
    for role, spec, roles in STEPS:
        inputs = {one: names[one] for one in roles}
        settings = _annotate_jobs.settings(role, floor_quantile=QUANTILE)
        step = Step(
            spec=spec,
            settings=settings,
            workers=Workers(cpus=os.cpu_count() or 1),
            inputs=inputs,
            fingerprint=fingerprint(spec.kind, spec.version, fields.identity(settings), inputs),
            uses=[Use(arm="bench", iteration=1, label=spec.kind)],
        )
        names[role] = step.fingerprint
        steps[step.fingerprint] = step
    return Plan(steps=steps, externals={samples.digest: samples}, configs={})


def parts_of(count: int, k: int) -> Iterator[pa.Table]:
    """Yield parts of `count` different prompts in all; a row shares its responses with the same row of other parts."""
    words = np.array([f"{number:x}" for number in range(VOCABULARY)])
    drawn = words[np.random.default_rng(0).integers(0, VOCABULARY, (PART_ROWS, k, WORDS))]
    texts = Texts("made-up", [""] * PART_ROWS, [[" ".join(text) for text in row] for row in drawn])
    table = samples_table(texts)
    for first in range(0, count, PART_ROWS):
        numbers = range(first, min(first + PART_ROWS, count))
        messages = [[{"role": "user", "content": f"Prompt {i}: " + "what do you think of it? " * 10}] for i in numbers]
        part = table.slice(0, len(numbers))
        for name, values in (("id", [f"{i:016x}" for i in numbers]), ("messages", messages)):
            field = table.schema.field(name)
            part = part.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
        yield part


def rows_of(case: str, small: dict[str, Any], whole: dict[str, Any]) -> list[Row]:
    """Return the rows of both runs; memory is a process's own, at most, over the driver's start."""
    own = sum(step["stats"].get(SECONDS, 0.0) for step in whole["steps"].values())
    peaks = [found["peak_mb"] - found["start_mb"] for found in (small, whole)]
    parts = whole["parts"]
    return [
        Row(case, "wall time", whole["seconds"], "s"),
        Row(case, "of it the stand-ins' own", own, "s"),
        Row(case, "overhead: all the rest", whole["seconds"] - own, "s"),
        *(Row(case, f"of it {kind}", step["wall"], "s") for kind, step in whole["steps"].items()),
        Row(case, "of it Ray's start", parts["start_ray"], "s"),
        Row(case, "of it finish", parts["finish"], "s"),
        Row(case, "driver's memory, peak over its start", peaks[1], "MB", aim=500),
        Row(case, "driver's memory, peak over that of a tenth of the prompts", peaks[1] - peaks[0], "MB", aim=100),
        Row(case, "a worker's memory, peak", whole["worker_mb"], "MB"),
        Row(
            case,
            "a worker's memory, peak over that of a tenth of the prompts",
            whole["worker_mb"] - small["worker_mb"],
            "MB",
        ),
    ]
