"""One group of training workers under Ray Train: started, waited for, restarted after a death, told to stop."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray.exceptions import OutOfMemoryError
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from sparring.stages.errors import TrainingFault
from sparring.stages.patience import PLACEMENT_S, Patience
from sparring.stages.step import Job
from sparring.stages.train.config import TrainSettings
from sparring.stages.train.launch import failures, memory, sigterm, worker
from sparring.stages.train.launch.mailbox import STOP, Receiver, ask_for_group, groups, mailbox

Report = Callable[[dict[str, Any]], None]
POLL_S = 0.2
START_S = 60.0
"""Seconds after which Ray Train tries anew to place a group; it would do so for ever."""
SAVING_S = 900.0
"""Seconds that the workers have to save their state once the run is told to end."""
ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(START_S),
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Of the driver while Ray Train runs: see a worker's end at once, write nothing nobody reads."""


class _Listening(TorchConfig):
    """Ray Train's own set-up of torch, and then the handler of SIGTERM in every worker."""

    @property
    def backend_cls(self) -> type[Backend]:
        base: Any = super().backend_cls

        class Listening(base):
            def on_training_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
                super().on_training_start(worker_group, backend_config)
                worker_group.execute(sigterm.listen)

        return Listening


class Watching(UserCallback):
    """In Ray Train's controller: sees a worker that was killed because memory ran out, which can say nothing itself.

    Either Ray's memory monitor did it, and says so, or the kernel, which counts. The count is that of one machine: of
    a kernel's kill on another one than the driver's nothing is known, and the group is started again as it was.
    """

    def __init__(self, job: Job[TrainSettings]) -> None:
        self.job, self.host, self.kills = job, socket.gethostname(), memory.kernel_kills()

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, BaseException]) -> None:
        """Note that workers are waited for anew; where memory ran out, with fewer pairs in a forward pass."""
        with contextlib.suppress(OSError):
            ask_for_group(self.job)
        by_kernel = socket.gethostname() == self.host and memory.kernel_kills() > self.kills
        for rank, error in worker_exceptions.items():
            cause = getattr(error, "health_check_failure", error)
            if isinstance(cause, OutOfMemoryError) or by_kernel:
                failures.go_on_with_less(self.job, rank)
                return


def fit(job: Job[TrainSettings], asked: Callable[[], int], report: Report) -> Result | TrainingFailedError | None:
    """Run workers until they end; return what Ray makes of it, None where a signal ended the wait for them.

    asked, report: as in stage.run. A signal ends the wait for workers that have not begun at once; those that have save
    their state first. TrainingFault when the workers cannot be placed in PLACEMENT_S.
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
        received, wait = Receiver(job, report), _Wait(job, report)
        ask_for_group(job)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            received()
            if asked():
                (mailbox(job) / STOP).touch()
            if wait.is_over(asked(), begun=received.group >= groups(job)):
                return None
        received()
    if isinstance(ends[0], Result | TrainingFailedError):
        return ends[0]
    raise ends[0]


class _Wait:
    """How long the driver waits: for workers to begin, at first and after a death, and to save once told to end."""

    def __init__(self, job: Job[TrainSettings], report: Report) -> None:
        self.job, self.report, self.stopped_at = job, report, 0.0
        self.patience: Patience | None = None

    def is_over(self, number: int, begun: bool) -> bool:
        """Return whether a signal `number` ends the wait (0: none came); TrainingFault when no worker comes in time."""
        if number:
            if not self.stopped_at and begun:
                self._say(
                    "the workers save their state after this optimizer step; a second signal ends the run at once, "
                    f"as does their silence of {SAVING_S:.0f} s"
                )
            self.stopped_at = self.stopped_at or time.monotonic()
            return not begun or time.monotonic() - self.stopped_at > SAVING_S
        self.patience = None if begun else self.patience or Patience()
        if self.patience:
            self._look(self.patience)
        return False

    def _look(self, patience: Patience) -> None:
        asked = self.job.workers
        wanted = f"{asked.count} training workers with {asked.cpus} CPUs and {asked.gpus} GPUs each"
        if patience.waited_s > PLACEMENT_S:
            raise TrainingFault(
                f"{wanted} could not be placed in {PLACEMENT_S:.0f} s: others hold what they need, or a node is gone. "
                "Lower hardware.workers, or wait for the others; then run again."
            )
        if patience.is_due():
            self._say(f"waiting for {wanted}, {patience.waited_s:.0f} s so far, at most {PLACEMENT_S:.0f} s")

    def _say(self, text: str) -> None:
        self.report({"event": "message", "text": text})


def _trainer(job: Job[TrainSettings]) -> TorchTrainer:
    workers = job.workers
    train: Any = worker.work  # its type says that a training returns nothing
    callbacks: list[Any] = [Watching(job)]  # one of Ray Train's second version, as are the names below
    failure: Any = FailureConfig
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    return TorchTrainer(
        train,
        train_loop_config={"job": job},
        torch_config=_Listening(backend="nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=resources
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
