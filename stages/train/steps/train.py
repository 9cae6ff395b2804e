"""The step `train`: Ray Train's TorchTrainer runs one worker process per rank; DeepSpeed ZeRO-3 shards the policy.

The driver starts the workers, passes their progress on and turns their faults into errors. Training resumes from the
last complete checkpoint after any kill, of a worker (Ray restarts the group) or of the driver (run again). Workers
that ran out of memory, or had to end, are started anew: that is no failure, and is not counted as one.
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
from sparring.stages.step import Job, Places
from sparring.stages.train.config import TrainSettings, refuse_too_few_steps
from sparring.stages.train.files import checkpoint
from sparring.stages.train.launch import workers
from sparring.stages.train.launch.interface import advice
from sparring.stages.train.launch.mailbox import DISK_FULL, ENDING, Receiver, mailbox, read


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of a training step: the files of the artifact and the content of its manifest."""

    files: dict[str, Path]
    """Logical name -> absolute path under the artifact's folder; the names on disk carry the attempt."""
    rows: dict[str, Any]
    summary: dict[str, Any]
    stats: dict[str, float]


def run(
    job: Job[TrainSettings],
    report: workers.Report,
    stop_signal: Callable[[], int] = lambda: 0,
    places: Callable[[], Places] = workers.every_node,
) -> Trained:
    """Train in the cluster that Ray is connected to; Stopped when the state is saved after a signal.

    stop_signal: returns the number of the signal that ends the run, 0 while there is none.
    report: gets the record of each optimizer step with done, of and pid, each worker's pid, and messages.
    places: returns the nodes that may get work now.
    """
    job = replace(job, out=job.out.absolute(), scratch=job.scratch.absolute())
    _check(job)
    mailbox(job).mkdir(parents=True, exist_ok=True)
    for line in checkpoint.drop_damaged(job):
        report({"event": "message", "text": f"{line}; training goes on from {_place(checkpoint.latest(job))}"})
    result = _result(job, stop_signal, report, places)
    summary = result["summary"]
    dropped = {"too_long": summary["too_long"]} if summary["too_long"] else {}
    return Trained(
        files={name: Path(path) for name, path in result["files"].items()},
        rows={"in": summary["pairs"] + summary["too_long"], "out": summary["pairs"], "dropped": dropped},
        summary=summary,
        stats={"tokens": summary["tokens"]},
    )


def _result(
    job: Job[TrainSettings], stop_signal: Callable[[], int], report: workers.Report, places: Callable[[], Places]
) -> dict[str, Any]:
    """Start groups of workers until one has finished; return what its rank 0 returned.

    Where nodes were lost, the next group has as many workers as there is room for and the batch can be dealt to.
    """
    outcome: dict[str, Any] = {}
    receiver, wait, died_starting = Receiver(job, report), workers.Wait(report, places), 0
    while not stop_signal():
        ended = workers.fit(job, stop_signal, receiver, wait, places())
        failed = ended if isinstance(ended, TrainingFailedError) else None
        not_begun = workers.not_begun(failed)
        died_starting += not_begun == workers.DIED_STARTING
        ending = read(job, ENDING) or {}
        outcome = getattr(ended, "return_value", None) or ending
        if (mailbox(job) / DISK_FULL).exists() or (failed and disk_is_full(failed, job.out)):
            raise DataError(full_disk(job.out))
        if "type" in ending:
            raise getattr(errors, ending["type"])(ending["message"])
        if "files" in outcome:
            return dict(outcome)
        if stop_signal():
            break
        if "micro_batch" in ending:
            report({"event": "message", "text": ending["text"]})
            (mailbox(job) / ENDING).unlink()
            job = replace(job, settings=job.settings.with_micro_batch(ending["micro_batch"]))
        elif not_begun and not job.workers.gives_up(died_starting):
            fit = workers.workers_that_fit(job, places())
            if 0 < fit < job.workers.count:
                text = f"the nodes that are left hold {fit} of {job.workers.count} training workers: training goes on "
                text += f"with {fit} from {_place(checkpoint.latest(job))}"
                report({"event": "message", "text": text})
                job = replace(job, workers=replace(job.workers, count=fit))
        elif "saved" in outcome:
            step = f"step {outcome['saved']} of {outcome['of']} is saved, training goes on from there"
            report({"event": "message", "text": f"a worker got SIGTERM: {step}"})
            (mailbox(job) / ENDING).unlink(missing_ok=True)
        else:
            last = checkpoint.latest(job)
            where = (
                f"step {last[1]} ({last[0]}); run again to resume from it, remove it to begin anew" if last else "none"
            )
            error = (str(failed or "").strip() or "they ended without a result").splitlines()[-1]
            raise TrainingFault(
                f"the training workers failed {job.workers.max_failures + 1} times (hardware.max_failures): {error}; "
                f"their output is in {mailbox(job)}; last checkpoint: {where}.{advice(str(failed))}"
            ) from failed
    where = f"step {outcome['saved']} of {outcome['of']}" if "saved" in outcome else _place(checkpoint.latest(job))
    number = stop_signal()
    raise Stopped(f"training stopped at {where} by {signal.Signals(number).name}; {RUN_AGAIN}", number)


def _place(saved: tuple[Path, int] | None) -> str:
    return f"step {saved[1]}" if saved else "the beginning"


def _check(job: Job[TrainSettings]) -> None:
    """Refuse a training that cannot teach anything, before anything starts."""
    job.settings.share(job.workers.count)
    scored = job.inputs.get("reference", job.inputs["targets"])  # without the rows that were too long, if any were read
    heldout = set(job.inputs["prompts"].table(0, ["id"])["id"].to_pylist())
    pairs = 0
    for index in range(scored.n_parts):
        ids = scored.table(index, ["id"])["id"].to_pylist()
        pairs += len(ids)
        both = sorted(name for name in ids if name.partition("~")[0] in heldout)
        if both:
            raise DataError(
                f"{len(both)} held-out prompts are among the pairs to train on ({', '.join(both[:3])} ...); what is "
                "learned could not be measured. Remove them from the imported data, or hold out others."
            )
    refuse_too_few_steps(pairs, job.settings.trainer)
