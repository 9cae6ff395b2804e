"""One group of training workers under Ray Train: started, waited for, restarted after a death, stopped."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from sparring.stages.errors import TrainingFault
from sparring.stages.patience import PLACEMENT_S, Patience
from sparring.stages.step import Job
from sparring.stages.train import memory
from sparring.stages.train.config import TrainSettings
from sparring.stages.train.launch import failures, sigterm, worker
from sparring.stages.train.launch.mailbox import STOP, Receiver, groups, mailbox, request_group

Report = Callable[[dict[str, Any]], None]
POLL_S = 0.2
START_S = 60.0
"""Seconds after which Ray Train tries anew to place a group; it would do so for ever."""
SAVING_S = 900.0
"""Seconds that the workers have to save their state once the run must end."""
ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(START_S),
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Of the driver while Ray Train runs: see a worker's end at once, write nothing nobody reads."""


class _WithSigterm(TorchConfig):
    """Ray Train's own set-up of torch, and then the handler of SIGTERM in every worker."""

    @property
    def backend_cls(self) -> type[Backend]:
        base: Any = super().backend_cls

        class WithSigterm(base):
            def on_training_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
                super().on_training_start(worker_group, backend_config)
                worker_group.execute(sigterm.listen)

        return WithSigterm


class MemoryKills(UserCallback):
    """In Ray Train's controller: sees a worker that was killed because memory ran out, which cannot report it itself.

    Either Ray's memory monitor killed it, and reports so, or the kernel, which counts. The count is of one machine: a
    kernel's kill on another one than the driver's goes unseen, and the group is started again as it was.
    """

    def __init__(self, job: Job[TrainSettings]) -> None:
        self.job, self.host, self.kills = job, socket.gethostname(), memory.kernel_kills()

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, BaseException]) -> None:
        """Request another group of workers; where memory ran out, with fewer pairs in a forward pass."""
        with contextlib.suppress(OSError):
            request_group(self.job)
        by_kernel = socket.gethostname() == self.host and memory.kernel_kills() > self.kills
        for rank, error in worker_exceptions.items():
            cause = getattr(error, "health_check_failure", error)
            if isinstance(cause, OutOfMemoryError) or by_kernel:
                failures.retry_with_less(self.job, rank)
                return


def fit(
    job: Job[TrainSettings], stop_signal: Callable[[], int], receiver: Receiver
) -> Result | TrainingFailedError | None:
    """Run workers until they end; return Ray's result or error, None where a signal ended the wait for them.

    stop_signal: as in steps/train.py; it ends the wait for workers that have not begun at once, and those that have
    save their state first. receiver: of all groups of workers of the job. TrainingFault when the workers cannot be
    placed in PLACEMENT_S.
    Ray Train is driven from a thread: on the main one it would put its own handler of Ctrl-C in place of ours.
    """
    ends: list[Any] = []

    def drive() -> None:
        try:
            ends.append(_trainer(job).fit())
        except BaseException as error:
            ends.append(error)

    with _environment():
        thread = threading.Thread(target=drive, name="ray-train", daemon=True)
        wait = _Wait(job, receiver.report)
        request_group(job)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            receiver()
            if stop_signal():
                (mailbox(job) / STOP).touch()
            if wait.is_over(stop_signal(), begun=receiver.group >= groups(job)):
                return None
        receiver()
    if isinstance(ends[0], Result | TrainingFailedError):
        return ends[0]
    raise ends[0]


class _Wait:
    """How long the driver waits: for workers to begin, at first and after a death, and to save before an end."""

    def __init__(self, job: Job[TrainSettings], report: Report) -> None:
        self.job, self.report, self.stopped_at = job, report, 0.0
        self.patience: Patience | None = None

    def is_over(self, number: int, begun: bool) -> bool:
        """Return whether a signal `number` ends the wait (0: none); TrainingFault when no worker begins in time."""
        if number:
            if not self.stopped_at and begun:
                text = (
                    "the workers save their state after this optimizer step; a second signal ends the run at once, "
                    f"as does their silence of {SAVING_S:.0f} s"
                )
                self.report({"event": "message", "text": text})
            self.stopped_at = self.stopped_at or time.monotonic()
            return not begun or time.monotonic() - self.stopped_at > SAVING_S
        self.patience = None if begun else self.patience or Patience()
        if not (patience := self.patience):
            return False
        group = self.job.workers
        wanted = f"{group.count} training workers with {group.cpus} CPUs and {group.gpus} GPUs each"
        if patience.waited_s > PLACEMENT_S:
            raise TrainingFault(
                f"{wanted} could not be placed in {PLACEMENT_S:.0f} s: others hold what they need, or a node is gone. "
                "Lower hardware.workers, or wait for the others; then run again."
            )
        if patience.is_due():
            text = f"waiting for {wanted}, {patience.waited_s:.0f} s so far, at most {PLACEMENT_S:.0f} s"
            self.report({"event": "message", "text": text})
        return False


def _trainer(job: Job[TrainSettings]) -> TorchTrainer:
    workers = job.workers
    train: Any = worker.work  # by its type a training returns nothing
    callbacks: list[Any] = [MemoryKills(job)]  # one of Ray Train's second version, as are the names below
    failure: Any = FailureConfig
    scaling: Any = ScalingConfig
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    return TorchTrainer(
        train,
        train_loop_config={"job": job},
        torch_config=_WithSigterm(backend="nccl" if workers.gpus else "gloo"),
        scaling_config=scaling(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker=resources,
            label_selector=_drivers_node() if job.store else None,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(mailbox(job)),
            failure_config=failure(
                max_failures=workers.max_failures, controller_failure_limit=int(PLACEMENT_S // START_S)
            ),
            callbacks=callbacks,
        ),
    )


def _drivers_node() -> dict[str, str]:
    """Return what chooses the driver's node: without a common file system the mailbox and checkpoints are there."""
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


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
