"""What the orchestrator costs at scale, with a STAND-IN engine: driver memory, overhead, and the way to the first
missing shard of a half-done step.

The driver is a process of its own with the real Executor, on Ray started for it; every time counts from the moment
it is asked for, so that the interpreter, imports, Ray and its workers are in it.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _jobs
from benchmarks._process import answer_of
from benchmarks._table import Row
from sparring.pipeline.planning.plan import Plan, Step, Use
from sparring.stages.sample.prompts import PART_ROWS
from sparring.stages.step import Input

PROMPT_TOKENS = 80


def measure(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Run the step whole; then stop it at half and time the resume."""
    plan = make_plan(arguments, folder)
    whole = drive(plan, folder / "whole", "end")
    shutil.rmtree(folder / "whole")
    half = drive(plan, folder / "half", "half")
    resumed = drive(plan, folder / "half", "first")
    assert whole["steps"]["sample"]["rows"]["out"] == arguments.prompts_at_scale and half["memory"]
    case = f"{arguments.prompts_at_scale} prompts, K={arguments.k}, stand-in engine"
    return [*_whole(case, whole), *_resumed(case, resumed)]


def make_plan(arguments: argparse.Namespace, folder: Path) -> Plan:
    """Return a plan of one step of kind `sample` on made-up prompts."""
    from benchmarks._standin import STANDIN

    prompts = _jobs.prompts_artifact(folder / "prompts", made_up(arguments.prompts_at_scale))
    policy = Input(role="policy", root=folder, digest="0" * 64)
    chosen = _jobs.settings(4096, k=arguments.k, max_tokens=2048)
    job = _jobs.step_job(STANDIN, chosen, [prompts, policy], folder)
    step = Step(
        spec=STANDIN,
        settings=job.settings,
        workers=job.workers,
        inputs={role: source.digest for role, source in job.inputs.items()},
        fingerprint=job.fingerprint,
        uses=[Use(arm="bench", iteration=1, label="sample")],
    )
    externals = {source.digest: source for source in job.inputs.values()}
    return Plan(steps={step.fingerprint: step}, externals=externals, configs={})


def made_up(count: int) -> Iterator[list[dict[str, Any]]]:
    """Yield parts of different prompts, `count` in all."""
    rng = np.random.default_rng(0)
    for first in range(0, count, PART_ROWS):
        size = min(PART_ROWS, count - first)
        ids = rng.integers(0, 49152, (size, PROMPT_TOKENS)).tolist()
        yield [
            {
                "id": f"{first + i:016x}",
                "messages": [{"role": "user", "content": f"Prompt {first + i}: " + "what do you think of it? " * 10}],
                "prompt_ids": ids[i],
            }
            for i in range(size)
        ]


def drive(plan: Plan, folder: Path, until: str) -> dict[str, Any]:
    """Run a driver in a process of its own and return what it says."""
    folder.mkdir(exist_ok=True)
    path = folder / "plan"
    path.write_bytes(pickle.dumps((plan, folder)))
    return answer_of("_driver", [str(path), until, str(time.time())], folder / f"{until}.log")


def _whole(case: str, found: dict[str, Any]) -> list[Row]:
    from benchmarks._standin import SECONDS

    own, parts, memory = found["steps"]["sample"]["stats"][SECONDS], found["parts"], found["memory"]
    early = memory[len(memory) // 10][1]
    return [
        Row(case, "wall time", found["seconds"], "s"),
        Row(case, "of it the stand-in's own", own, "s"),
        Row(case, "overhead: all the rest", found["seconds"] - own, "s", aim=60),
        Row(case, "of it Ray's start", parts["start_ray"], "s"),
        Row(case, "of it finish (lengths, endings)", parts["finish"], "s"),
        Row(case, "of it the manifest", parts["publish"], "s"),
        Row(case, "driver's memory, peak over its start", found["peak_mb"] - found["start_mb"], "MB", aim=500),
        Row(case, "driver's memory, last shard over a tenth", memory[-1][1] - early, "MB"),
    ]


def _resumed(case: str, found: dict[str, Any]) -> list[Row]:
    parts = found["parts"]
    return [
        Row(case, "resume at half, until a shard is handed out", found["handed_out"], "s", aim=10),
        Row(case, "of it Ray's start", parts["start_ray"], "s"),
        Row(case, "of it reading what is done", parts["finished_parts"], "s"),
    ]
