"""A small training job: random responses to random prompts, targets, and the real reference step's log-probs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from sparring.stages.step import Input, Job, sha256_file
from sparring.stages.train.config import (
    REFERENCE,
    TRAIN,
    AdapterIdentity,
    CalibrationIdentity,
    ReferenceIdentity,
    RepulsionIdentity,
    TrainIdentity,
    TrainRuntime,
)
from sparring.stages.train.objective_config import ObjectiveIdentity, has_base, has_reference, objective_from
from sparring.stages.train.reference import Reference, shards
from sparring.stages.train.stage import Trained
from tests.artifacts import SAMPLES_SCHEMA, as_input, as_job, folder_input

PAIR = pa.schema([("id", pa.string()), ("chosen", pa.int32()), ("rejected", pa.int32())])
TARGETS = pa.schema([*PAIR, *((name, pa.float64()) for name in ("target_w", "target_l", "target_wl", "gate_wl"))])
PAIRS = 23
"""Twelve steps of 2 pairs; the last is filled with one repeated row."""
OFF = RepulsionIdentity(name="off", weight=0.0, margin=1.0, pooling="mean", layer=-1)
AS_IT_IS = CalibrationIdentity(name="off", ema=0.98, max_log_delta=math.log(4))
REWARD = CalibrationIdentity(name="reward", ema=0.98, max_log_delta=math.log(4))
FULL = AdapterIdentity(name="off", rank=0, alpha=0.0, targets=())
HINGE = RepulsionIdentity(name="hinge", weight=1.0, margin=1.0, pooling="mean", layer=-1)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "sppo": {"beta": 0.001},
    "sppo_single": {"beta": 0.001},
    "sppo_hard": {"beta": 0.001},
    "dpo": {"beta": 0.1, "label_smoothing": 0.0},
    "ipo": {"tau": 0.1, "length_normalize": False},
    "spo": {"alpha": 10.0, "z_min": -1.0, "kappa": 0.1},
    "inpo": {"tau": 0.02, "inpo_eta": 0.1},
    "simpo": {"beta": 2.0, "gamma": 1.0},
}


def objective(name: str) -> ObjectiveIdentity:
    """An objective with usual parameters."""
    return objective_from({"name": name, "loss_scale": None, **OBJECTIVES[name]})


def identity(**changes: Any) -> TrainIdentity:
    """S-SPPO on 16 pairs in 8 steps of 2."""
    defaults: dict[str, Any] = {
        "objective": objective("sppo"),
        "repulsion": HINGE,
        "calibration": AS_IT_IS,
        "adapter": FULL,
        "optimizer": "rmsprop",
        "lr": 1e-4,
        "warmup_ratio": 0.1,
        "epochs": 1,
        "global_batch": 2,
        "max_grad_norm": 1.0,
        "max_length": 64,
        "truncate": "drop",
        "min_steps": 8,
        "dtype": "float32",
        "publish_dtype": "float32",
        "seed": 0,
    }
    return TrainIdentity(**{**defaults, **changes})


def runtime(**changes: Any) -> TrainRuntime:
    """One worker with one core."""
    defaults: dict[str, Any] = {
        "workers": 1,
        "cpus": 1,
        "gpus": 0,
        "micro_batch": 1,
        "checkpoint_steps": 3,
        "max_failures": 1,
        "gradient_checkpointing": False,
        "band_every": 1,
        "offload": "none",
        "sinks": (),
        "tracked_as": "train",
    }
    return TrainRuntime(**{**defaults, **changes})


def sampled(pairs: int, parts: int = 2, seed: int = 0, length: tuple[int, int] = (2, 12)) -> list[pa.Table]:
    """Samples tables: 4 to 20 prompt tokens, K=3 responses of 2 to 12, most of them with the end-of-turn token, 2."""
    shortest, longest = length
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(3, 49000) for _ in range(rng.randint(low, high))]

    rows = []
    for i in range(pairs):
        capped = [rng.random() < 0.3 for _ in range(3)]
        ids = [tokens(shortest - 1, longest - 1) + ([7] if cut else [2]) for cut in capped]
        responses = [
            {"text": "", "ids": one, "finish": "length" if cut else "stop", "seed": 0}
            for one, cut in zip(ids, capped, strict=True)
        ]
        rows.append({"id": f"row-{i:03d}", "messages": [], "prompt_ids": tokens(4, 20), "responses": responses})
    return [pa.Table.from_pylist(rows[part::parts], schema=SAMPLES_SCHEMA) for part in range(parts)]


def targets_of(samples: pa.Table) -> pa.Table:
    """Response 0 is chosen with win rate 0.9, response 2 rejected with 0.2; their duel is 0.8, their gate 0.1."""
    pair = {"chosen": 0, "rejected": 2, "target_w": 0.9, "target_l": 0.2, "target_wl": 0.8, "gate_wl": 0.1}
    rows = [{"id": row_id, **pair} for row_id in samples["id"].to_pylist()]
    return pa.Table.from_pylist(rows, schema=TARGETS)


def reference_job(
    folder: Path,
    policy: Path,
    samples: list[pa.Table],
    max_length: int = 64,
    truncate: str = "drop",
    four_bit: bool = False,
) -> Job:
    """The reference step of these samples."""
    inputs = [
        as_input("samples", folder / "samples", samples),
        as_input("pairs", folder / "pairs", [targets_of(table) for table in samples]),
        folder_input("policy", policy),
    ]
    wanted = ReferenceIdentity(dtype="float32", max_length=max_length, truncate=truncate, four_bit=four_bit)

    return as_job(REFERENCE, asdict(wanted), inputs, folder)


def train_inputs(
    folder: Path,
    policy: Path,
    pairs: int = 16,
    length: tuple[int, int] = (2, 12),
    max_length: int = 64,
    four_bit: bool = False,
) -> list[Input]:
    """The inputs of a training step, its references computed by the real step."""
    samples = sampled(pairs, length=length)
    job = reference_job(folder, policy, samples, max_length, four_bit=four_bit)

    worker = Reference(job)
    reference = [worker(shard).table for shard in shards(job)]
    targets = as_input("targets", folder / "targets", [targets_of(table) for table in samples])
    heldout = pa.table({"id": ["held-a", "held-b"]})
    return [
        as_input("prompts", folder / "prompts", [heldout, samples[0].select(["id"])]),
        job.inputs["samples"],
        targets,
        as_input("reference", folder / "reference", reference),
        job.inputs["policy"],
    ]


def inputs_of(wanted: ObjectiveIdentity, inputs: list[Input]) -> list[Input]:
    """What of `train_inputs` an objective is given; at iteration 1 the base's log-probs are the reference's."""
    reference = next(source for source in inputs if source.role == "reference")
    others = [source for source in inputs if source is not reference]
    base = [replace(reference, role="reference_base")] if has_base(wanted) else []
    return [*others, *([reference] if has_reference(wanted) else []), *base]


def train_job(
    folder: Path,
    inputs: list[Input],
    wanted: TrainIdentity | None = None,
    how: TrainRuntime | None = None,
    attempt: str = "first",
) -> Job:
    """A training step that writes under `folder`."""
    job = as_job(TRAIN, asdict(wanted or identity()), inputs, folder)
    return replace(job, runtime=asdict(how or runtime()), attempt=attempt)


def steps(made: Trained) -> list[dict[str, Any]]:
    """Records of the optimizer steps."""
    lines = made.files["metrics.jsonl"].read_text().splitlines()
    return [record for record in map(json.loads, lines) if "step" in record]


def digests(made: Trained) -> dict[str, str]:
    """Logical name -> sha256 of every file."""
    return {name: sha256_file(path) for name, path in made.files.items()}


def kill_at(step: int, rank: int = 0) -> tuple[list[dict[str, Any]], Any]:
    """Return a `report` that kills -9 a worker when `step` is first reported, and the events it saw."""
    seen: list[dict[str, Any]] = []

    def report(event: dict[str, Any]) -> None:
        seen.append(event)
        if event.get("done") == step and sum(e.get("done") == step for e in seen) == 1:
            pids = {e["rank"]: e["pid"] for e in seen if e.get("event") == "worker"}
            os.kill(pids[rank], signal.SIGKILL)

    return seen, report


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In a process group of one rank; one that a trainer of another test has left is ended first."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
