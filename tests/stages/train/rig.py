"""A small training job: random responses to random prompts, targets, and the real reference step's log-probs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparring.stages.fields import tags, validator
from sparring.stages.step import Input, Job, sha256_file
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.config import (
    REFERENCE,
    TRAIN,
    HingeRepulsion,
    OffAdapter,
    OffCalibration,
    OffRepulsion,
    PlainRepulsion,
    ReferenceSettings,
    RepulsionConfig,
    RewardCalibrationConfig,
    Scoring,
    TrainSettings,
    Truncation,
)
from sparring.stages.train.files.probe import changes_of_log_prob
from sparring.stages.train.model.scorer import load_scorer
from sparring.stages.train.objectives import ObjectiveConfig
from sparring.stages.train.steps.reference import Reference, shards
from sparring.stages.train.steps.train import Trained
from tests.artifacts import SAMPLES_SCHEMA, as_input, as_job, folder_input
from tests.settings import changed, default

PAIR = pa.schema([("id", pa.string()), ("chosen", pa.int32()), ("rejected", pa.int32())])
TARGETS = pa.schema([*PAIR, *((name, pa.float64()) for name in ("target_w", "target_l", "target_wl", "gate_wl"))])
PAIRS = 23
"""Twelve steps of 2 pairs; the last is filled with one repeated row."""
OFF = OffRepulsion(name="off", pooling="mean")
HINGE = HingeRepulsion(name="hinge", weight=1.0, margin=1.0, pooling="mean", layer=-1)
AS_IT_IS = OffCalibration(name="off")
REWARD = RewardCalibrationConfig(name="reward", ema=0.98, max_log_delta=math.log(4))
FULL = OffAdapter(name="off")


PARAMETERS: dict[str, dict[str, Any]] = {
    "sppo": {"beta": 0.001},
    "sppo_single": {"beta": 0.001},
    "sppo_hard": {"beta": 0.001},
    "dpo": {"beta": 0.1, "label_smoothing": 0.0},
    "ipo": {"tau": 0.1, "length_normalize": False},
    "spo": {"alpha": 10.0, "z_min": -1.0, "kappa": 0.1},
    "inpo": {"tau": 0.02, "inpo_eta": 0.1},
    "simpo": {"beta": 2.0, "gamma": 1.0},
}
OBJECTIVES = tags(ObjectiveConfig, "name")
REPULSIONS = [name for name in tags(RepulsionConfig, "name") if name != "off"]


def objective(name: str, **changes: Any) -> Any:
    """An objective with usual parameters."""
    plain = {"name": name, "loss_scale": None, **PARAMETERS[name], **changes}
    return validator(ObjectiveConfig).validate_python(plain)


def settings(**changes: Any) -> TrainSettings:
    """S-SPPO on 16 pairs in 8 steps of 2, by one worker with one core."""
    chosen: dict[str, Any] = {
        "objective": objective("sppo"),
        "repulsion": HINGE,
        "calibration": AS_IT_IS,
        "adapter": FULL,
        "lr": 1e-4,
        "global_batch": 2,
        "max_length": 64,
        "checkpoint_steps": 3,
        "band_every": 1,
        "worker_cpus": 1,
        "micro_batch": 1,
        "max_failures": 1,
    }
    config = default()
    made = TrainSettings(
        objective=config.objective,
        repulsion=config.repulsion,
        calibration=config.calibration,
        trainer=config.trainer,
        seed=0,
        hardware=config.hardware,
        tracking=config.tracking,
        tracked_as="train",
    )
    return changed(made, **{**chosen, **changes})


def repelling(name: str, margin: float = 1.0) -> HingeRepulsion | PlainRepulsion:
    """A latent repulsion of weight 1; only `hinge` has a margin."""
    shared: Any = {"name": name, "weight": 1.0, "pooling": "mean", "layer": -1}
    return HingeRepulsion(margin=margin, **shared) if name == "hinge" else PlainRepulsion(**shared)


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


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def small_llama(**changes: Any) -> LlamaForCausalLM:
    """A model of random weights and 64 tokens, the same at each call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes}))


def targets_of(samples: pa.Table, **columns: list[Any]) -> pa.Table:
    """One pair of each prompt, `columns` by name; else response 0 is chosen with win rate 0.9, response 2 rejected with
    0.2, their duel is 0.8 and their gate 0.1.
    """
    pair = {"chosen": 0, "rejected": 2, "target_w": 0.9, "target_l": 0.2, "target_wl": 0.8, "gate_wl": 0.1}
    n = samples.num_rows
    return pa.table({"id": samples["id"], **{name: columns.get(name, [pair[name]] * n) for name in pair}}, TARGETS)


def logprobs_of(pairs: pa.Table, chosen: list[float], rejected: list[float]) -> pa.Table:
    """What the step `reference` made of these pairs."""
    names = {"chosen_logprob": chosen, "rejected_logprob": rejected}
    return pa.table({**{name: pairs[name] for name in PAIR.names}, **names})


def reference_job(
    folder: Path,
    policy: Path,
    samples: list[pa.Table],
    max_length: int = 64,
    truncate: Truncation = "drop",
    four_bit: bool = False,
) -> Job:
    """The reference step of these samples."""
    inputs = [
        as_input("samples", folder / "samples", samples),
        as_input("pairs", folder / "pairs", [targets_of(table) for table in samples]),
        folder_input("policy", policy),
    ]
    scoring = Scoring(dtype="float32", max_length=max_length, truncate=truncate)
    return as_job(REFERENCE, ReferenceSettings(trainer=scoring, four_bit=four_bit), inputs, folder)


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


def inputs_of(wanted: ObjectiveConfig, inputs: list[Input]) -> list[Input]:
    """What of `train_inputs` an objective is given; at iteration 1 the base's log-probs are the reference's."""
    reference = next(source for source in inputs if source.role == "reference")
    others = [source for source in inputs if source is not reference]
    base = [replace(reference, role="reference_base")] if wanted.reads_base else []
    return [*others, *([reference] if wanted.reads_reference else []), *base]


def train_job(folder: Path, inputs: list[Input], wanted: TrainSettings | None = None, attempt: str = "first") -> Job:
    """A training step that writes under `folder`."""
    job = as_job(TRAIN, wanted or settings(), inputs, folder)
    return replace(job, workers=job.settings.hardware.training_workers(), attempt=attempt)


def steps(made: Trained) -> list[dict[str, Any]]:
    """Records of the optimizer steps."""
    lines = made.files["metrics.jsonl"].read_text().splitlines()
    return [record for record in map(json.loads, lines) if "step" in record]


def digests(made: Trained) -> dict[str, str]:
    """Logical name -> sha256 of every file."""
    return {name: sha256_file(path) for name, path in made.files.items()}


def reload_probe(folder: Path, rows: list[ResponsePair]) -> list[dict[str, Any]]:
    """The probe of a published folder; call it in a process that has not configured ZeRO-3."""
    return changes_of_log_prob(load_scorer(folder, "float32"), rows)


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
