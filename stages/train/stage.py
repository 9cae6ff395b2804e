"""The step `train`: Ray Train's TorchTrainer runs one worker process per rank; DeepSpeed ZeRO-3 shards the policy.

The driver starts the workers, passes their progress on and turns their faults into errors. Training resumes from the
last complete checkpoint after any kill, of a worker (Ray restarts the group) or of the driver (run again).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.errors import DataError, TrainingFault
from pipeline.job import Job
from stages.train import checkpoint, worker
from stages.train.config import TrainIdentity, TrainRuntime, refuse_too_few_steps

Report = Callable[[dict[str, Any]], None]

POLL_S = 0.2
ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Of the driver while Ray Train runs: see a worker's end at once, write nothing nobody reads."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training step leaves: the files of the artifact and what its manifest says."""

    files: dict[str, Path]
    """Logical name -> absolute path under the artifact's folder; the names on disk carry the attempt."""
    rows: dict[str, Any]
    summary: dict[str, Any]
    stats: dict[str, float]


def run(job: Job, report: Report) -> Trained:
    """Train in the cluster that Ray is connected to; `report` gets each worker's pid and each step's done, of, loss."""
    job = replace(job, out=job.out.absolute(), scratch=job.scratch.absolute())
    _check(job)
    room = worker.room(job)
    room.mkdir(parents=True, exist_ok=True)
    with _following(room, report):
        _fit(job)
    if (room / "fault.json").exists():
        fault = json.loads((room / "fault.json").read_text())
        raise getattr(errors, fault["type"])(fault["message"])
    result = json.loads((room / "result.json").read_text())
    summary = result["summary"]
    dropped = {"too_long": summary["too_long"]} if summary["too_long"] else {}
    return Trained(
        files={name: Path(path) for name, path in result["files"].items()},
        rows={"in": summary["pairs"] + summary["too_long"], "out": summary["pairs"], "dropped": dropped},
        summary=summary,
        stats={"tokens": summary["tokens"]},
    )


def _check(job: Job) -> None:
    """Refuse a training that cannot teach anything, before anything starts."""
    identity, runtime = TrainIdentity.from_dict(job.identity), TrainRuntime(**job.runtime)
    runtime.micro_pairs(identity.global_batch)
    scored = job.inputs.get("reference", job.inputs["targets"])  # without the rows that were too long, if any were read
    heldout = set(job.inputs["prompts"].table(0, ["id"])["id"].to_pylist())
    pairs = 0
    for index in range(scored.n_parts):
        ids = scored.table(index, ["id"])["id"].to_pylist()
        pairs += len(ids)
        both = sorted(name for name in ids if name.partition("~")[0] in heldout)
        if both:
            raise DataError(
                f"{len(both)} held-out prompts are among the pairs to train on ({', '.join(both[:3])} ...); what was "
                "learned could not be measured. Remove them from what was imported, or hold out others."
            )
    refuse_too_few_steps(pairs, identity)


def _fit(job: Job) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    runtime = TrainRuntime(**job.runtime)
    resources = {"CPU": runtime.cpus} | ({"GPU": runtime.gpus} if runtime.gpus else {})
    with _environment(), _interrupt_kept():
        trainer = TorchTrainer(
            worker.work,
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="nccl" if runtime.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=runtime.workers, use_gpu=runtime.gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(worker.room(job)),
                failure_config=FailureConfig(max_failures=runtime.max_failures),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise TrainingFault(_died(job, error)) from error


def _died(job: Job, error: Exception) -> str:
    kept = checkpoint.latest(job)
    where = f"step {kept[1]}" if kept else "none"
    last = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return (
        f"the training workers failed {job.runtime['max_failures'] + 1} times: {last}; their output is in "
        f"{worker.room(job)}; last checkpoint: {where}; run again to resume from it."
    )


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupt_kept() -> Iterator[None]:
    """Give the interrupt handler back that Ray Train replaces."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _following(room: Path, report: Report) -> Iterator[None]:
    """Pass on what the workers append to their files, until the block ends."""
    ended = threading.Event()
    read: dict[Path, int] = {}

    def pass_on() -> None:
        for path in sorted(room.glob("rank-*.jsonl")):
            with path.open("rb") as handle:
                handle.seek(read.get(path, 0))
                for line in handle:
                    if not line.endswith(b"\n"):
                        break
                    read[path] = read.get(path, 0) + len(line)
                    report(json.loads(line))

    def follow() -> None:
        while not ended.wait(POLL_S):
            pass_on()

    thread = threading.Thread(target=follow, name="train-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        pass_on()
