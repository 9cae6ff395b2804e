"""The step `train`: Ray Train's TorchTrainer runs one worker process per rank; DeepSpeed ZeRO-3 shards the policy.

The driver starts the workers, passes their progress on and turns their faults into errors. Training resumes from the
last complete checkpoint after any kill, of a worker (Ray restarts the group) or of the driver (run again). Workers
that ran out of memory, or were told to end, are started anew here: that is no failure, and is not counted as one.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray.train import TrainingFailedError

from sparring.stages import errors
from sparring.stages.errors import RUN_AGAIN, DataError, Stopped, TrainingFault, disk_is_full, full_disk
from sparring.stages.step import Job
from sparring.stages.train.config import TrainSettings, refuse_too_few_steps
from sparring.stages.train.files import checkpoint
from sparring.stages.train.launch import workers
from sparring.stages.train.launch.mailbox import DISK_FULL, ENDING, mailbox, read


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training step leaves: the files of the artifact and what its manifest says."""

    files: dict[str, Path]
    """Logical name -> absolute path under the artifact's folder; the names on disk carry the attempt."""
    rows: dict[str, Any]
    summary: dict[str, Any]
    stats: dict[str, float]


def run(job: Job[TrainSettings], report: workers.Report, asked: Callable[[], int] = lambda: 0) -> Trained:
    """Train in the cluster that Ray is connected to; Stopped when `asked` returned a signal and the state is saved.

    report: gets the record of each optimizer step with done, of and pid, each worker's pid, and messages.
    """
    job = replace(job, out=job.out.absolute(), scratch=job.scratch.absolute())
    _check(job)
    mailbox(job).mkdir(parents=True, exist_ok=True)
    for line in checkpoint.drop_damaged(job):
        report({"event": "message", "text": f"{line}; training goes on from {_place(checkpoint.latest(job))}"})
    result = _result(job, asked, report)
    summary = result["summary"]
    dropped = {"too_long": summary["too_long"]} if summary["too_long"] else {}
    return Trained(
        files={name: Path(path) for name, path in result["files"].items()},
        rows={"in": summary["pairs"] + summary["too_long"], "out": summary["pairs"], "dropped": dropped},
        summary=summary,
        stats={"tokens": summary["tokens"]},
    )


def _result(job: Job[TrainSettings], asked: Callable[[], int], report: workers.Report) -> dict[str, Any]:
    """Start groups of workers until one has finished; return what its rank 0 returned."""
    while True:
        if asked():
            raise Stopped(_saved(job, asked(), {}), asked())
        ended = workers.fit(job, asked, report)
        failed = ended if isinstance(ended, TrainingFailedError) else None
        made = getattr(ended, "return_value", None) or {}
        ending = read(job, ENDING) or {}
        if (mailbox(job) / DISK_FULL).exists() or (failed and disk_is_full(failed, job.out)):
            raise DataError(full_disk(job.out))
        if "type" in ending:
            raise getattr(errors, ending["type"])(ending["message"])
        if "files" in made:
            return dict(made)
        if asked():
            raise Stopped(_saved(job, asked(), made), asked())
        if "micro_batch" in ending:
            report({"event": "message", "text": ending["text"]})
            (mailbox(job) / ENDING).unlink()
            job = replace(job, settings=job.settings.with_micro_batch(ending["micro_batch"]))
        elif "saved" in made:
            step = f"step {made['saved']} of {made['of']} is saved, training goes on from there"
            report({"event": "message", "text": f"a worker was told to end (SIGTERM): {step}"})
        else:
            raise TrainingFault(_died(job, failed)) from failed


def _saved(job: Job[TrainSettings], number: int, made: dict[str, Any]) -> str:
    where = f"step {made['saved']} of {made['of']}" if "saved" in made else _place(checkpoint.latest(job))
    return f"training stopped at {where} by {signal.Signals(number).name}; {RUN_AGAIN}"


def _place(kept: tuple[Path, int] | None) -> str:
    return f"step {kept[1]}" if kept else "the beginning"


def _check(job: Job[TrainSettings]) -> None:
    """Refuse a training that cannot teach anything, before anything starts."""
    job.settings.share()
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
    refuse_too_few_steps(pairs, job.settings.trainer)


def _died(job: Job[TrainSettings], error: Exception | None) -> str:
    kept = checkpoint.latest(job)
    where = f"step {kept[1]} ({kept[0]}); run again to resume from it, remove it to begin anew" if kept else "none"
    last = (str(error or "").strip() or "they ended without a result").splitlines()[-1]
    return (
        f"the training workers failed {job.workers.max_failures + 1} times (hardware.max_failures): {last}; their "
        f"output is in {mailbox(job)}; last checkpoint: {where}."
    )
