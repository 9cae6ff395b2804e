"""A pool of workers on Ray for one step: shards handed out as workers come free, a dead worker restarted by Ray.

An actor loads a step's models in a call of its own, before its first shard: an error in loading reaches the driver as
itself and not as a dead actor, and is never taken for the fault of a prompt.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError, WorkerCrashedError

from sparring.pipeline import cluster
from sparring.pipeline.faults import (
    MOST_POISON,
    TRIES_BEFORE_BISECTION,
    Watch,
    alike,
    bisect,
)
from sparring.pipeline.worker import Worker, finish_once, run_once
from sparring.stages.errors import RUN_AGAIN, DataError, EngineFault, SparringError, disk_is_full, full_disk
from sparring.stages.patience import PLACEMENT_S, Patience
from sparring.stages.step import Job, Shard, resolve

WATCH_S = 1.0
"""Seconds between looks at deadlines."""
ENDING_S = 10.0
"""Seconds that ended processes have to be gone, before they are killed, and after."""
MODELS = ("policy", "judge", "encoder")
"""Input roles that a worker loads once and keeps; `first.judge` is a judge too."""


class Pool:
    """Workers of one step, and of the steps after it that they fit; `close` ends their processes."""

    def __init__(self, job: Job, shards: int) -> None:
        self.job = job
        self.loaded = False
        self.ready_at: float | None = None
        """When the first worker had loaded the models of the step at hand (time.monotonic)."""
        self.pid_of: dict[Any, int] = {}
        self.ended: set[Any] = set()
        self.starting: dict[Any, Any] = {}
        self.actors: list[Any] = []
        if job.spec.pool != "tasks":
            _placeable(job)
            options = ray.remote(
                num_cpus=_reserved(job),
                num_gpus=job.workers.gpus,
                max_restarts=-1,
                max_task_retries=-1,
            )
            size = _wanted(job, shards)
            self.actors = [options(Worker).remote(job, number) for number in range(size)]

    def fits(self, job: Job, shards: int) -> bool:
        """Return whether these workers can serve another step: as many of them, with the same settings.

        Engines, in addition, must have its models loaded.
        """
        same = (job.spec.pool, _made_with(job)) == (self.job.spec.pool, _made_with(self.job))
        models = (job.spec, _models(job)) == (self.job.spec, _models(self.job))
        free = not self.loaded or job.spec.pool == "annotators"
        return bool(self.actors) and same and (free or models) and len(self.actors) >= _wanted(job, shards)

    def prepare(self) -> None:
        """Have the workers do, in the background, what their step lets them do before its inputs exist."""
        for actor in self.actors:
            actor.prepare.remote(self.job)

    def close(self) -> None:
        """End the workers and wait until their processes and their children, and so their memory, are gone."""
        pids = self.pid_of.values() if self.actors and cluster.is_local() else ()
        processes = [process for pid in pids for process in _family(pid)]
        if cluster.dead_process():  # who would end them is gone, and would be waited for
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
        self, job: Job, shards: list[Shard], worker: Callable[[int], None], say: Callable[[str], None]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (shard index, record) as shards are done; `worker` is told each worker's pid, new ones too.

        A shard whose worker dies, fails or is past its deadline is done again by a new one; where it fails again and
        the step's shards can be tried in parts, the prompts at fault are found and dropped. `say` is told of all that.
        """
        self.job, self.loaded, self.say, self.ready_at = job, True, say, None
        self.watch = Watch(job.workers.deadline_s)
        self.waiting, self.deaths, self.loads = deque(shards), Counter[int](), Counter[Any]()
        self.warned: set[str] = set()
        self.running: dict[Any, tuple[Any, Shard | None, float]] = {}
        # A worker is waited for by its process: on a busy cluster some may wait for others' cores and GPUs.
        self.starting = {hand.pid.remote(): hand for hand in self.actors}
        told: set[int] = set()
        for hand in self.actors:
            self._load(hand)
        if not self.actors:
            self.ready_at = time.monotonic()
            for _ in range(_light_workers()):
                self._hand_out(None)
        patience = Patience()
        while self.waiting or self._at_work():
            for reference in _done([*self.running, *self.starting]):
                if reference in self.starting:
                    hand = self.starting.pop(reference)
                    pid, made = self._there(hand, reference), None
                elif reference not in self.running:  # of a worker that has been started anew meanwhile
                    continue
                else:
                    hand, shard, begun = self.running.pop(reference)
                    pid, made = self._made(reference, hand, shard, begun)
                if pid and pid not in told:
                    told.add(pid)
                    worker(pid)
                if made:
                    yield made
                if pid and hand not in self.starting.values() and not self._busy(hand):
                    self._hand_out(hand)
            self._wait(patience, told)
            # A result that is there but was not looked at yet belongs to no hung worker.
            done = _ready(list(self.running))
            self._end_hung([entry for reference, entry in self.running.items() if reference not in done])

    def _at_work(self) -> bool:
        """Return whether a shard is being done; a worker that still loads is not waited for at a step's end."""
        return any(shard for _, shard, _ in self.running.values())

    def _busy(self, hand: Any) -> bool:
        return hand is not None and any(hand == other for other, _, _ in self.running.values())

    def _there(self, hand: Any, reference: Any) -> int | None:
        """Return a worker's pid; only now does the time run that it may take to load its models."""
        self.pid_of[hand] = _sure(self.job, reference)
        for call, (other, shard, _) in self.running.items():
            if other == hand:
                self.running[call] = (hand, shard, time.monotonic())
        return self.pid_of[hand]

    def _wait(self, patience: Patience, told: set[int]) -> None:
        """Say for what a driver waits that has nothing else to do; SparringError where no worker comes at all."""
        cluster.check_alive()
        if self._at_work():
            patience.restart()
        elif patience.is_due():
            most = f"{self._missing()}, at most {PLACEMENT_S:.0f} s, "
            what = "its workers still load their models, " if told else most
            self.say(f"{self.job.out.name}: {what}{patience.waited_s:.0f} s so far")
        if not told and patience.waited_s > PLACEMENT_S:
            raise SparringError(f"{self.job.out.name}: {self._missing()}, for {PLACEMENT_S:.0f} s now; {RUN_AGAIN}")

    def _missing(self) -> str:
        asked = f"{_reserved(self.job)} CPUs and {self.job.workers.gpus} GPUs"
        return f"no worker answers yet: it still starts, or waits for {asked} that others hold"

    def _load(self, hand: Any) -> None:
        self.running[hand.load.options(max_task_retries=0).remote(self.job)] = (hand, None, time.monotonic())

    def _hand_out(self, hand: Any) -> None:
        if self.waiting:
            shard = self.waiting.popleft()
            self.running[self._submit(hand, shard)] = (hand, shard, time.monotonic())

    def _made(
        self, reference: Any, hand: Any, shard: Shard | None, begun: float
    ) -> tuple[int | None, tuple[int, dict[str, Any]] | None]:
        """Return the worker's pid, and what became of a shard: its index and record; None, None after a failure."""
        try:
            found = _call(self.job, reference)
        except EngineFault as fault:
            if shard:
                self.deaths[shard.index] += 1
                self.waiting.appendleft(self._mended(hand, shard, self.deaths[shard.index], self._reason(hand, fault)))
            else:
                self._load_failed(hand, self._reason(hand, fault))
            self._load(hand)
            return None, None
        self.ended.discard(hand)
        if shard is None:
            self.loads[hand], self.ready_at = 0, self.ready_at or time.monotonic()
            for text in found:
                if text not in self.warned:  # every worker that loads the same warns of the same
                    self.warned.add(text)
                    self.say(f"{self.job.out.name}: {text}")
            return self.pid_of.get(hand), None
        self.watch.took(time.monotonic() - begun)
        pid, record = found
        return pid, (shard.index, record)

    def _load_failed(self, hand: Any, fault: EngineFault) -> None:
        """Have a worker start anew; EngineFault where it fails again before it has loaded them."""
        self.loads[hand] += 1
        if self.job.workers.gives_up(self.loads[hand]):
            raise EngineFault(
                f"{self.job.out.name}: its worker failed {self.loads[hand]} times while it loaded its models, "
                f"before any prompt: {fault}; details: {_logs(self.job)}."
            )
        self.say(f"{self.job.out.name}: while it loaded its models, {fault}; it is started again")
        self._renew(hand, fault)

    def _reason(self, hand: Any, fault: EngineFault) -> EngineFault:
        """Return what is said of a failure: of a worker that was ended, why."""
        if hand not in self.ended:
            return fault
        return WorkerDied(f"it took longer than {self.watch.most_s():.0f} s (hardware.shard_deadline_s) and was ended")

    def _submit(self, actor: Any, shard: Shard) -> Any:
        # Ray restarts a worker, but hands no shard out again: `map` does, which counts and looks why.
        return (
            actor.run.options(max_task_retries=0).remote(self.job, shard)
            if actor
            else _light(self.job, run_once).remote(self.job, shard)
        )

    def _end_hung(self, running: list[Any]) -> None:
        for hand, shard, begun in running:
            if hand in self.pid_of and self.watch.late(begun) and hand not in self.ended:
                self.ended.add(hand)
                what = f"shard {shard.index} has taken" if shard else "its models have been loading for"
                self.say(f"{self.job.out.name}: {what} {time.monotonic() - begun:.0f} s; its worker is ended")
                ray.kill(hand, no_restart=False)

    def _mended(self, hand: Any, shard: Shard, failures: int, fault: EngineFault) -> Shard:
        """Return the shard to try next, without the prompts at fault where they are found; EngineFault at the end."""
        name, narrow = self.job.out.name, self.job.spec.narrow
        if hand is None or self.job.workers.gives_up(failures):
            raise EngineFault(
                f"{name}: shard {shard.index} failed {failures} times (hardware.max_failures), at last because "
                f"{fault}; details: {_logs(self.job)}. Run again to resume from the finished shards."
            )
        self.say(f"{name}: shard {shard.index}: {fault}; it is done again")
        self._renew(hand, fault)
        if failures != TRIES_BEFORE_BISECTION or not narrow:
            return shard
        tried = resolve(narrow)
        self._refuse_permanent(hand, tried, shard, fault)
        rows = len(shard.payload["rows"])
        poison = bisect(range(rows), lambda keep: self._fails(hand, tried(shard, keep)))
        if len(poison) > MOST_POISON or len(poison) == rows > 1:
            many = "all" if len(poison) == rows else f"more than {MOST_POISON}"
            raise EngineFault(
                f"{name}: {many} prompts of shard {shard.index} fail, so it is not the prompts; the last time because "
                f"{fault}; details: {_logs(self.job)}."
            )
        if not poison:
            return shard
        places = ", ".join(str(shard.payload["rows"][i]) for i in poison)
        self.say(f"{name}: its worker fails on the prompts of rows {places}; they are dropped and counted as poison")
        kept: Shard = tried(shard, [i for i in range(rows) if i not in poison])
        return kept

    def _refuse_permanent(self, hand: Any, tried: Callable[..., Shard], shard: Shard, fault: EngineFault) -> None:
        """EngineFault where two other prompts, each alone, fail in the same way."""
        own = [0, len(shard.payload["rows"]) - 1]
        others = sorted(self.waiting, key=lambda one: self.deaths[one.index])
        probes = [*(tried(one, [0]) for one in others), *(tried(shard, [place]) for place in own)][:2]
        for probe in probes:
            found = self._failure(hand, probe)
            if found is None or not alike(str(found), str(fault)):
                return
        raise EngineFault(
            f"{self.job.out.name}: every prompt fails in the same way, so it is not the prompts: {fault}; details: "
            f"{_logs(self.job)}."
        )

    def _fails(self, hand: Any, shard: Shard) -> bool:
        return self._failure(hand, shard) is not None

    def _failure(self, hand: Any, shard: Shard) -> EngineFault | None:
        """Try a part of a shard and keep nothing; return why its worker died, failed or hung, None where it did not."""
        while (fault := self._outcome(hand, hand.load.options(max_task_retries=0).remote(self.job), None)) is not None:
            self._load_failed(hand, fault)
        self.loads[hand] = 0
        fault = self._outcome(hand, hand.probe.options(max_task_retries=0).remote(self.job, shard), shard)
        if fault is not None:
            rows = len(shard.payload["rows"])
            many = "1 prompt" if rows == 1 else f"{rows} prompts"
            self.say(f"{self.job.out.name}: {many} of shard {shard.index} alone: {fault}; its worker starts again")
            self._renew(hand, fault)
        return fault

    def _outcome(self, hand: Any, reference: Any, shard: Shard | None) -> EngineFault | None:
        """Wait for a call; return why its worker died, failed or hung, None where it did not."""
        begun = time.monotonic()
        while not ray.wait([reference], timeout=WATCH_S)[0]:
            cluster.check_alive()
            self._end_hung([(hand, shard, begun)])
        try:
            _call(self.job, reference)
        except EngineFault as fault:
            return self._reason(hand, fault)
        return None

    def _renew(self, hand: Any, fault: EngineFault) -> None:
        """Wait for the worker that Ray starts in place of a dead one; one that only failed may be in any state."""
        old, patience = self.pid_of.get(hand), Patience()
        self.starting = {reference: other for reference, other in self.starting.items() if other != hand}
        if not isinstance(fault, WorkerDied):
            ray.kill(hand, no_restart=False)
        while self.pid_of.get(hand) == old:
            reference = hand.pid.remote()
            while not ray.wait([reference], timeout=WATCH_S)[0]:
                cluster.check_alive()
                if patience.waited_s > PLACEMENT_S:
                    raise SparringError(
                        f"{self.job.out.name}: no worker came back in place of a dead one in {PLACEMENT_S:.0f} s; is a "
                        "node gone? Run again to resume."
                    )
                if patience.is_due():
                    self.say(f"{self.job.out.name}: {self._missing()}, {patience.waited_s:.0f} s so far")
            self.pid_of[hand] = _sure(self.job, reference)
            time.sleep(WATCH_S / 10)
        self.ended.discard(hand)


class WorkerDied(EngineFault):
    """The process of a worker is gone."""


def _done(references: list[Any]) -> list[Any]:
    """Return those that are done, after a wait for the first."""
    cluster.check_alive()
    ray.wait(references, num_returns=1, timeout=WATCH_S)
    return _ready(references)


def _ready(references: list[Any]) -> list[Any]:
    ready: list[Any] = ray.wait(references, num_returns=len(references), timeout=0)[0] if references else []
    return ready


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _wanted(job: Job, shards: int) -> int:
    return min(side_by_side(job), shards)


def side_by_side(job: Job) -> int:
    """Return how many workers the step has: as many as it says, or as its GPUs allow, and no more than find room."""
    room = _room(job)
    return max(1, min(job.workers.count or room, room))


def _room(job: Job) -> int:
    """Return how many workers the cluster's machines hold side by side, were they free."""
    asked = {kind: n for kind, n in (("CPU", _reserved(job)), ("GPU", job.workers.gpus)) if n}
    if not asked:
        return sys.maxsize
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(has.get(kind, 0) // n) for kind, n in asked.items()) for has in alive)


def _reserved(job: Job) -> int:
    """Return the cores a worker holds. On this machine alone none: one step follows another, and a worker that waits
    for its step must not hold cores."""
    return job.workers.cpus if cluster.joined() or job.workers.gpus else 0


def _made_with(job: Job) -> Any:
    """Return what a worker's process was made with; the deadline is the driver's affair."""
    return replace(job.workers, deadline_s=math.inf), getattr(job.settings, "hardware", None)


def _models(job: Job) -> dict[str, str]:
    return {role: source.digest for role, source in job.inputs.items() if role.rpartition(".")[2] in MODELS}


def finish(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the step's summary, computed in a task from the written parts, one at a time in memory."""
    return _sure(job, _light(job, finish_once).remote(job, records)) if job.spec.finish else {}


def _light(job: Job, function: Callable[..., Any]) -> Any:
    # No core is asked for: a pool that waits for its next step may hold them all, and these tasks are light.
    return ray.remote(num_cpus=0, max_retries=job.workers.max_failures)(function)


def _call(job: Job, reference: Any) -> Any:
    while not ray.wait([reference], timeout=WATCH_S)[0]:
        cluster.check_alive()
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, SparringError):
            raise error.cause from None
        if disk_is_full(error.cause, job.out):
            raise DataError(full_disk(job.out)) from None
        raise SparringError(f"{job.out.name} failed: {error.cause!r}; details: {_logs(job)}") from error
    except (RayActorError, WorkerCrashedError, OutOfMemoryError) as error:
        if disk_is_full(error, job.out):
            raise DataError(full_disk(job.out)) from None
        cluster.check_alive()
        raise WorkerDied("its worker died (out of memory, or killed)") from None
    except RayError as error:
        cluster.check_alive()
        raise SparringError(f"{job.out.name}: Ray failed: {str(error).splitlines()[0]}. {RUN_AGAIN}") from None


def _sure(job: Job, reference: Any) -> Any:
    """Return the result of a call that no shard hangs on."""
    try:
        return _call(job, reference)
    except EngineFault as fault:
        raise SparringError(f"{job.out.name}: {fault}; details: {_logs(job)}") from None


def _placeable(job: Job) -> None:
    """SparringError when no machine of the cluster has the cores or GPUs that one worker asks for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for resource, key in (("CPU", "cpus"), ("GPU", "gpus")):
        most = max((node.get(resource, 0) for node in nodes), default=0)
        if (asked := getattr(job.workers, key)) > most:
            raise SparringError(
                f"{job.out.name}: a worker asks for {asked} {resource}s, the largest node has {most:.0f}; "
                f"lower the {key} of hardware (see conf/hardware)."
            )


def _logs(job: Job) -> str:
    return f"{job.scratch}/{job.out.name}-*.log"


def _light_workers() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
