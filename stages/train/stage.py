"""The step `train`: Ray Train's TorchTrainer runs one worker process per rank; DeepSpeed ZeRO-3 shards the policy.

The driver starts the workers, passes their progress on and turns their faults into errors. Training resumes from the
last complete checkpoint after any kill, of a worker (Ray restarts the group) or of the driver (run again). Workers
that ran out of memory, or were told to end, are started anew here: that is no failure, and is not counted as one.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparring.stages import errors
from sparring.stages.errors import RUN_AGAIN, DataError, Stopped, TrainingFault, disk_is_full, full_disk
from sparring.stages.step import Job
from sparring.stages.train import checkpoint, group
from sparring.stages.train import room as rooms
from sparring.stages.train.config import TrainSettings, refuse_too_few_steps
from sparring.stages.train.room import room, told

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training step leaves: the files of the artifact and what its manifest says."""

    files: dict[str, Path]
    """Logical name -> absolute path under the artifact's folder; the names on disk carry the attempt."""
    rows: dict[str, Any]
    summary: dict[str, Any]
    stats: dict[str, float]


def run(job: Job[TrainSettings], report: Report, asked: Callable[[], int] = lambda: 0) -> Trained:
    """Train in the cluster that Ray is connected to; Stopped when `asked` returned a signal and the state is saved.

    report: gets the record of each optimizer step with done, of and pid, each worker's pid, and messages.
    """
    job = replace(job, out=job.out.absolute(), scratch=job.scratch.absolute())
    _check(job)
    room(job).mkdir(parents=True, exist_ok=True)
    with _following(room(job), report):
        result = _result(job, asked, report)
    summary = result["summary"]
    dropped = {"too_long": summary["too_long"]} if summary["too_long"] else {}
    return Trained(
        files={name: Path(path) for name, path in result["files"].items()},
        rows={"in": summary["pairs"] + summary["too_long"], "out": summary["pairs"], "dropped": dropped},
        summary=summary,
        stats={"tokens": summary["tokens"]},
    )


def _result(job: Job[TrainSettings], asked: Callable[[], int], report: Report) -> dict[str, Any]:
    """Start groups of workers until one has finished."""
    for line in checkpoint.drop_damaged(job):
        kept = checkpoint.latest(job)
        report({"event": "message", "text": f"{line}; training goes on from {_place(kept)}"})
    while True:
        if asked():
            raise Stopped(_saved(job, asked()), asked())
        failed = group.fit(job, asked, lambda text: report({"event": "message", "text": text}))
        fault, result, again = (told(job, name) for name in (rooms.FAULT, rooms.RESULT, rooms.AGAIN))
        if (room(job) / rooms.FULL).exists() or (failed and disk_is_full(failed, job.out)):
            raise DataError(full_disk(job.out))
        if fault:
            raise getattr(errors, fault["type"])(fault["message"])
        if result:
            return dict(result)
        if asked():
            raise Stopped(_saved(job, asked()), asked())
        if not again:
            raise TrainingFault(_died(job, failed)) from failed
        report({"event": "message", "text": again["text"]})
        (room(job) / rooms.AGAIN).unlink()
        if "micro_batch" in again:
            job = replace(job, settings=job.settings.with_micro_batch(again["micro_batch"]))


def _saved(job: Job[TrainSettings], number: int) -> str:
    saved, kept = told(job, rooms.STOPPED), checkpoint.latest(job)
    where = f"step {saved['step']} of {saved['of']}" if saved else _place(kept)
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
        f"output is in {room(job)}; last checkpoint: {where}."
    )


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
        while not ended.wait(group.POLL_S):
            pass_on()

    thread = threading.Thread(target=follow, name="train-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        pass_on()
