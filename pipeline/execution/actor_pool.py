"""Workers on Ray for one step: shards go to workers as they become free, and Ray restarts a dead worker.

An actor loads a step's models in a call of its own, before its first shard: an error in loading reaches the driver as
that error, not as a dead actor, and is never blamed on a prompt.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError, WorkerCrashedError

from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.execution.fault_policy import (
    MOST_POISON,
    TRIES_BEFORE_BISECTION,
    ShardDeadline,
    alike,
    bisect,
    log_files,
    step_errors,
)
from sparring.pipeline.execution.worker import Loaded, Worker, finish_task, run_task
from sparring.stages.errors import RUN_AGAIN, DataError, EngineFault, SparringError, disk_is_full, first_line, full_disk
from sparring.stages.loaded import Load
from sparring.stages.patience import PLACEMENT_S, Patience
from sparring.stages.sample.config import SampleSettings
from sparring.stages.step import Job, Shard, resolve

POLL_S = 1.0
"""Seconds between checks of deadlines and of Ray itself."""
ENDING_S = 10.0
"""Seconds that ended processes have to be gone, before they are killed, and after."""
MODELS = ("policy", "judge", "encoder")
"""Input roles that a worker loads once and keeps; `first.judge` is a judge too."""


class WorkerDied(EngineFault):
    """The process of a worker has ended."""


@dataclass
class Call:
    """A call that a worker has not answered yet; without a shard the worker loads its models."""

    actor: Any
    """None: a task of a light step."""
    shard: Shard | None
    begun: float = field(default_factory=time.monotonic)


class ActorPool:
    """Workers of one step, and of the steps after it that they fit; `close` ends their processes.

    Light steps run as tasks, without actors.
    """

    def __init__(self, job: Job, shards: int) -> None:
        self.job = job
        self.loaded = False
        self.ready_at = 0.0
        """When the first worker had loaded the models of the current step (time.monotonic), 0 before."""
        self.pid_of: dict[Any, int] = {}
        self.ended: dict[Any, WorkerDied] = {}
        """Actor that was killed since it hung -> the fault to report."""
        self.starting: dict[Any, Any] = {}
        """Ray's reference -> actor whose process does not answer yet."""
        self.actors: list[Any] = []
        if job.spec.pool != "tasks":
            _check_placeable(job)
            cpus, gpus, size = _reserved(job), job.workers.gpus, min(side_by_side(job), shards)
            remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(Worker)
            self.actors = [remote.remote(job, number) for number in range(size)]

    def fits(self, job: Job, shards: int) -> bool:
        """Return whether these workers can serve another step: as many of them, with the same settings.

        Engines, in addition, must have its models loaded.
        """
        same = (job.spec.pool, _process_settings(job)) == (self.job.spec.pool, _process_settings(self.job))
        models = (job.spec, _models(job)) == (self.job.spec, _models(self.job))
        free = not self.loaded or job.spec.pool == "annotators"
        enough = len(self.actors) >= min(side_by_side(job), shards)
        return bool(self.actors) and same and (free or models) and enough

    def prepare(self) -> None:
        """Have the workers do, in the background, what their step lets them do before its inputs exist."""
        for actor in self.actors:
            actor.prepare.remote(self.job)

    @property
    def holds_resources(self) -> bool:
        """Whether idle workers keep cores or GPUs from others."""
        return bool(_reserved(self.job) or self.job.workers.gpus)

    def drop_large_models(self) -> None:
        """Have the workers free the memory of large models; small ones stay for the next step."""
        for reference in [actor.drop_large.remote() for actor in self.actors]:
            _result_or_stop(self.job, reference)

    def close(self) -> None:
        """End the workers and wait until their processes and their children, and so their memory, are gone."""
        processes: list[psutil.Process] = []
        on_this_machine = self.actors and (not ray_cluster.joined() or len(ray.nodes()) == 1)
        for pid in self.pid_of.values() if on_this_machine else ():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                processes += [process, *process.children(recursive=True)]
        if ray_cluster.dead_process():  # ray.kill would wait for a process of Ray that has ended
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        else:
            for actor in self.actors:
                with contextlib.suppress(RayError):
                    ray.kill(actor)
        self.actors = []
        _, alive = psutil.wait_procs(processes, timeout=ENDING_S)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _, alive = psutil.wait_procs(alive, timeout=ENDING_S)
        if alive:
            left = ", ".join(str(process.pid) for process in alive)
            raise SparringError(
                f"{self.job.out.name}: the worker processes {left} did not end, so their memory is not free; "
                "end them, then run again."
            )

    def map(
        self,
        job: Job,
        shards: list[Shard],
        on_worker: Callable[[int], None],
        message: Callable[[str], None],
        on_load: Callable[[int, Load], None] = lambda pid, load: None,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (shard index, record) as shards are done; `on_worker` gets each worker's pid, that of new ones too.
        `on_load` gets the pid of a worker and the model that it has loaded.

        A shard whose worker dies, fails or is past its deadline is computed again by a new one. Where it fails again
        and the step's shards can be split, the prompts that make it fail are found and dropped. `message` gets a line
        about each of these.
        """
        self.job, self.loaded, self.message, self.on_load, self.ready_at = job, True, message, on_load, 0.0
        self.deadline = ShardDeadline(job.workers.deadline_s)
        self.waiting, self.failures, self.load_failures = deque(shards), Counter[int](), Counter[Any]()
        self.warned: set[str] = set()
        self.running: dict[Any, Call] = {}
        # A worker counts as started when its process answers: on a busy cluster some wait for others' cores and GPUs.
        self.starting = {actor.pid.remote(): actor for actor in self.actors}
        seen_pids: set[int] = set()
        for actor in self.actors:
            self._load(actor)
        if not self.actors:
            self.ready_at = time.monotonic()
            for _ in range(max(1, int(ray.cluster_resources().get("CPU", 1)))):
                self._submit(None)
        patience = Patience()
        while self.waiting or self._computing():
            ray_cluster.check_alive()
            references = [*self.running, *self.starting]
            ray.wait(references, num_returns=1, timeout=POLL_S)
            for reference in _ready(references):
                pid, result = None, None
                if reference in self.starting:
                    actor = self.starting.pop(reference)
                    pid = self.pid_of[actor] = _result_or_stop(job, reference)
                    for call in self.running.values():
                        if call.actor == actor:  # only now its models begin to load
                            call.begun = time.monotonic()
                elif reference in self.running:
                    call = self.running.pop(reference)
                    actor = call.actor
                    pid, result = self._collect(reference, call)
                else:  # the worker was restarted after this call
                    continue
                if pid and pid not in seen_pids:
                    seen_pids.add(pid)
                    on_worker(pid)
                if result:
                    yield result
                busy = actor is not None and any(actor == call.actor for call in self.running.values())
                if pid and actor not in self.starting.values() and not busy:
                    self._submit(actor)
            self._check_wait(patience, bool(seen_pids))
            # A result that has arrived but was not collected yet belongs to no hung worker.
            done = _ready(list(self.running))
            self._end_hung([call for reference, call in self.running.items() if reference not in done])

    def _computing(self) -> bool:
        """Return whether a shard is being computed; at a step's end, workers that still load are not waited for."""
        return any(call.shard for call in self.running.values())

    def _load(self, actor: Any) -> None:
        self.running[actor.load.options(max_task_retries=0).remote(self.job)] = Call(actor, None)

    def _submit(self, actor: Any) -> None:
        """Give the next shard to an actor, or to a task if `actor` is None."""
        if self.waiting:
            shard = self.waiting.popleft()
            # Ray restarts a worker but does not retry its shard: `map` does, which counts the failures and asks why.
            run = actor.run.options(max_task_retries=0) if actor else _task(self.job, run_task)
            self.running[run.remote(self.job, shard)] = Call(actor, shard)

    def _check_wait(self, patience: Patience, any_worker: bool) -> None:
        """Report what a driver without results waits for; SparringError where no worker starts at all."""
        if self._computing():
            patience.restart()
        elif patience.is_due():
            most = f"{self._no_worker_yet()}, at most {PLACEMENT_S:.0f} s, "
            what = "its workers still load their models, " if any_worker else most
            self.message(f"{self.job.out.name}: {what}{patience.waited_s:.0f} s so far")
        if not any_worker and patience.waited_s > PLACEMENT_S:
            raise SparringError(
                f"{self.job.out.name}: {self._no_worker_yet()}, for {PLACEMENT_S:.0f} s now; {RUN_AGAIN}"
            )

    def _no_worker_yet(self) -> str:
        needed = f"{_reserved(self.job)} CPUs and {self.job.workers.gpus} GPUs"
        return f"no worker answers yet: it still starts, or waits for {needed} that others hold"

    def _collect(self, reference: Any, call: Call) -> tuple[int | None, tuple[int, dict[str, Any]] | None]:
        """Return the worker's pid, and of a shard its index and record; None, None after a failure."""
        actor, shard = call.actor, call.shard
        try:
            result = _result(self.job, reference, shard)
        except EngineFault as error:
            fault = self.ended.get(actor, error)
            if shard:
                self.failures[shard.index] += 1
                self.waiting.appendleft(self._retry(actor, shard, self.failures[shard.index], fault))
            else:
                self._load_failed(actor, fault)
            self._load(actor)
            return None, None
        self.ended.pop(actor, None)
        if shard is None:
            self.load_failures[actor], self.ready_at = 0, self.ready_at or time.monotonic()
            self._report_loads(actor, result)
            for text in result.warnings:
                if text not in self.warned:  # every worker that loads the same models has the same warnings
                    self.warned.add(text)
                    self.message(f"{self.job.out.name}: {text}")
            return self.pid_of.get(actor), None
        self.deadline.record(time.monotonic() - call.begun)
        pid, record = result
        return pid, (shard.index, record)

    def _report_loads(self, actor: Any, result: Loaded) -> None:
        for load in result.loads:
            self.on_load(self.pid_of.get(actor, 0), load)

    def _load_failed(self, actor: Any, fault: EngineFault) -> None:
        """Restart a worker that failed while it loaded its models; EngineFault after too many failures."""
        self.load_failures[actor] += 1
        if self.job.workers.gives_up(self.load_failures[actor]):
            raise EngineFault(
                f"{self.job.out.name}: its worker failed {self.load_failures[actor]} times while it loaded its models, "
                f"before any prompt: {fault}; details: {log_files(self.job)}."
            )
        self.message(f"{self.job.out.name}: while it loaded its models, {fault}; it is started again")
        self._restart(actor, fault)

    def _end_hung(self, calls: list[Call]) -> None:
        """Kill the actors whose shard or loading is past its deadline; Ray starts new processes for them."""
        allowed = self.deadline.allowed_s()
        for call in calls:
            spent = time.monotonic() - call.begun
            if spent > allowed and call.actor in self.pid_of and call.actor not in self.ended:
                fault = WorkerDied(f"it took longer than {allowed:.0f} s (hardware.shard_deadline_s) and was ended")
                self.ended[call.actor] = fault
                what = f"shard {call.shard.index} has taken" if call.shard else "its models have been loading for"
                self.message(f"{self.job.out.name}: {what} {spent:.0f} s; its worker is ended")
                ray.kill(call.actor, no_restart=False)

    def _retry(self, actor: Any, shard: Shard, failures: int, fault: EngineFault) -> Shard:
        """Return the shard to try next, without the prompts that make it fail, if found; EngineFault at the end."""
        name, narrow = self.job.out.name, self.job.spec.narrow
        if actor is None:  # Ray itself has done a light task again
            failures = 1 + self.job.workers.max_failures
        if self.job.workers.gives_up(failures):
            raise EngineFault(
                f"{name}: shard {shard.index} failed {failures} times (hardware.max_failures), at last because "
                f"{fault}; details: {log_files(self.job)}. Run again to resume from the finished shards."
            )
        self.message(f"{name}: shard {shard.index}: {fault}; it is done again")
        self._restart(actor, fault)
        if failures != TRIES_BEFORE_BISECTION or not narrow:
            return shard
        part: Callable[..., Shard] = resolve(narrow)
        self._check_other_prompts(actor, part, shard, fault)
        rows = len(shard.payload["rows"])
        poison = bisect(range(rows), lambda keep: self._probe(actor, part(shard, keep)) is not None)
        if len(poison) > MOST_POISON or len(poison) == rows > 1:
            many = "all" if len(poison) == rows else f"more than {MOST_POISON}"
            raise EngineFault(
                f"{name}: {many} prompts of shard {shard.index} fail, so it is not the prompts; the last time because "
                f"{fault}; details: {log_files(self.job)}."
            )
        if not poison:
            return shard
        places = ", ".join(str(shard.payload["rows"][i]) for i in poison)
        self.message(
            f"{name}: its worker fails on the prompts of rows {places}; they are dropped and counted as poison"
        )
        return part(shard, [i for i in range(rows) if i not in poison])

    def _check_other_prompts(self, actor: Any, part: Callable[..., Shard], shard: Shard, fault: EngineFault) -> None:
        """EngineFault where two other prompts, each alone, fail in the same way."""
        own = [0, len(shard.payload["rows"]) - 1]
        others = sorted(self.waiting, key=lambda one: self.failures[one.index])
        probes = [*(part(one, [0]) for one in others), *(part(shard, [place]) for place in own)][:2]
        for probe in probes:
            other = self._probe(actor, probe)
            if other is None or not alike(str(other), str(fault)):
                return
        raise EngineFault(
            f"{self.job.out.name}: every prompt fails in the same way, so it is not the prompts: {fault}; details: "
            f"{log_files(self.job)}."
        )

    def _probe(self, actor: Any, shard: Shard) -> EngineFault | None:
        """Try a part of a shard and keep nothing; return why its worker died, failed or hung, None where it did not."""
        while (fault := self._outcome(actor, actor.load, None)) is not None:
            self._load_failed(actor, fault)
        self.load_failures[actor] = 0
        fault = self._outcome(actor, actor.probe, shard)
        if fault is not None:
            rows = len(shard.payload["rows"])
            many = "1 prompt" if rows == 1 else f"{rows} prompts"
            self.message(f"{self.job.out.name}: {many} of shard {shard.index} alone: {fault}; its worker starts again")
            self._restart(actor, fault)
        return fault

    def _outcome(self, actor: Any, method: Any, shard: Shard | None) -> EngineFault | None:
        """Call a worker and wait; return why it died, failed or hung, None where it did not."""
        call, arguments = Call(actor, shard), (self.job, shard) if shard else (self.job,)
        reference = method.options(max_task_retries=0).remote(*arguments)
        while not ray.wait([reference], timeout=POLL_S)[0]:
            ray_cluster.check_alive()
            self._end_hung([call])
        try:
            result = _result(self.job, reference, shard)
        except EngineFault as error:
            return self.ended.get(actor, error)
        if shard is None:
            self._report_loads(actor, result)
        return None

    def _restart(self, actor: Any, fault: EngineFault) -> None:
        """Wait for the worker that Ray starts in place of a dead one; one that only failed is ended first."""
        old, patience = self.pid_of.get(actor), Patience()
        self.starting = {reference: other for reference, other in self.starting.items() if other != actor}
        if not isinstance(fault, WorkerDied):
            ray.kill(actor, no_restart=False)
        while self.pid_of.get(actor) == old:
            reference = actor.pid.remote()
            while not ray.wait([reference], timeout=POLL_S)[0]:
                ray_cluster.check_alive()
                if patience.waited_s > PLACEMENT_S:
                    raise SparringError(
                        f"{self.job.out.name}: no worker has replaced a dead one in {PLACEMENT_S:.0f} s; is a "
                        "node gone? Run again to resume."
                    )
                if patience.is_due():
                    self.message(f"{self.job.out.name}: {self._no_worker_yet()}, {patience.waited_s:.0f} s so far")
            self.pid_of[actor] = _result_or_stop(self.job, reference)
            time.sleep(POLL_S / 10)
        self.ended.pop(actor, None)


def side_by_side(job: Job) -> int:
    """Return how many workers the step has: its count, or as many as the machines hold, and never more than that.

    Steps of tasks have as many as this machine has cores.
    """
    if job.spec.pool == "tasks":
        return os.cpu_count() or 1
    needed = {kind: n for kind, n in (("CPU", _reserved(job)), ("GPU", job.workers.gpus)) if n}
    capacity = sys.maxsize
    if needed:
        machines = ray_cluster.machines()
        capacity = sum(min(int(has.get(kind, 0) // n) for kind, n in needed.items()) for has in machines)
    return max(1, min(job.workers.count or capacity, capacity))


def finish(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the step's summary, computed in a task from the written parts, one at a time in memory."""
    return _result_or_stop(job, _task(job, finish_task).remote(job, records))


def _task(job: Job, function: Callable[..., Any]) -> Any:
    # Tasks reserve no core: idle actors may hold all of them, and these tasks are light.
    return ray.remote(num_cpus=0, max_retries=job.workers.max_failures)(function)


def _ready(references: list[Any]) -> list[Any]:
    """Return the calls that are done."""
    ready: list[Any] = ray.wait(references, num_returns=len(references), timeout=0)[0] if references else []
    return ready


def _result(job: Job, reference: Any, shard: Shard | None = None) -> Any:
    """Wait for a call and return its result; WorkerDied where its process has ended, else an error to report."""
    while not ray.wait([reference], timeout=POLL_S)[0]:
        ray_cluster.check_alive()
    try:
        return ray.get(reference)
    except RayTaskError as error:
        with step_errors(job, shard):
            raise error.cause from error
    except (RayActorError, WorkerCrashedError, OutOfMemoryError) as error:
        if disk_is_full(error, job.out):
            raise DataError(full_disk(job.out)) from None
        ray_cluster.check_alive()
        raise WorkerDied("its worker died (out of memory, or killed)") from None
    except RayError as error:
        ray_cluster.check_alive()
        raise SparringError(f"{job.out.name}: Ray failed: {first_line(error)}. {RUN_AGAIN}") from None


def _result_or_stop(job: Job, reference: Any) -> Any:
    """Return the result of a call that computes no shard; a dead worker raises SparringError."""
    try:
        return _result(job, reference)
    except EngineFault as fault:
        raise SparringError(f"{job.out.name}: {fault}; details: {log_files(job)}") from None


def _check_placeable(job: Job) -> None:
    """SparringError when no machine of the cluster has the cores or GPUs that one worker needs."""
    machines = ray_cluster.machines()
    for resource, key in (("CPU", "cpus"), ("GPU", "gpus")):
        most = max((machine.get(resource, 0) for machine in machines), default=0)
        if (needed := getattr(job.workers, key)) > most:
            raise SparringError(
                f"{job.out.name}: a worker needs {needed} {resource}s, the largest node has {most:.0f}; "
                f"lower the {key} of hardware (see conf/hardware)."
            )


def _reserved(job: Job) -> int:
    """Return the cores that a worker reserves. On this machine alone none: one step follows another, and an idle worker
    must hold no cores."""
    return job.workers.cpus if ray_cluster.joined() or job.workers.gpus else 0


def _process_settings(job: Job) -> Any:
    """Return the settings that a worker's process was started with; only the driver uses the deadline."""
    workers, settings = replace(job.workers, deadline_s=math.inf), job.settings
    if not isinstance(settings, SampleSettings):
        return workers
    engine_args, hardware = getattr(settings.sampler, "engine_args", None), settings.hardware
    return workers, settings.max_model_len, engine_args, hardware.gpu_memory, hardware.kv_cache_gb


def _models(job: Job) -> dict[str, str]:
    return {role: source.digest for role, source in job.inputs.items() if role.rpartition(".")[2] in MODELS}
