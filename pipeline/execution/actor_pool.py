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
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskUnschedulableError,
    WorkerCrashedError,
)

from sparring.pipeline.execution import nodes, ray_cluster
from sparring.pipeline.execution.fault_policy import (
    TRIES_BEFORE_BISECTION,
    ShardDeadline,
    log_files,
    poison_search,
    step_errors,
)
from sparring.pipeline.execution.worker import Loaded, Worker, finish_task, run_task
from sparring.stages.errors import RUN_AGAIN, DataError, EngineFault, SparringError, disk_is_full, first_line, full_disk
from sparring.stages.loaded import Load
from sparring.stages.patience import LOST_S, PLACEMENT_S, SILENCE_S, Patience
from sparring.stages.sample.config import SampleSettings
from sparring.stages.sample.request_queue import MOST_AT_ONCE
from sparring.stages.step import Job, Places, Shard, Workers, resolve
from sparring.stages.vitals import EVERY_S

POLL_S = 1.0
"""Seconds between checks of deadlines and of Ray itself."""
NODES_S = 2.0
"""Seconds between looks at the cluster's nodes."""
ENDING_S, ENDS_WITHIN_S = 10.0, 60.0
"""Seconds that ended processes have to be gone before they are killed, and that their node has to say so."""
MODELS = ("policy", "judge", "encoder")
"""Input roles that a worker loads once and keeps; `first.judge` is a judge too."""


class WorkerDied(EngineFault):
    """The process of a worker has ended."""


class NodeLost(WorkerDied):
    """No node is left that a worker may go to."""


class Process(NamedTuple):
    """A worker's process."""

    node: str
    """Ray's id of its node."""
    pid: int


@dataclass
class Search:
    """The search for the prompts of a shard that make its worker fail."""

    probes: Generator[Shard, EngineFault | None, Shard]
    """Yields parts to try, gets why each failed or None; returns the shard to compute in the end."""


@dataclass
class Call:
    """A call that a worker has not answered yet."""

    actor: Any
    """None: a task of a light step."""
    shard: Shard | None
    """None: the worker loads its models."""
    search: Search | None = None
    """The shard is a part that this search tries; its result is not kept."""
    begun: float = field(default_factory=time.monotonic)


class ActorPool:
    """Workers of one step, and of the steps after it that they fit; `close` ends their processes.

    Light steps run as tasks, without actors. On a cluster the pool goes on with the nodes there are: the actors of a
    node that is gone leave it, and new ones are made, up to the step's number, where nodes have room for them.
    """

    def __init__(self, job: Job, shards: int) -> None:
        self.job = job
        self.loaded = False
        self.ready_at = 0.0
        """When the first worker had loaded the models of the current step (time.monotonic), 0 before."""
        self.message: Callable[[str], None] = lambda text: None
        self.process_of: dict[Any, Process] = {}
        self.replaced: dict[Any, Process] = {}
        """Actor that is started again -> the process that it had."""
        self.ended: dict[Any, WorkerDied] = {}
        """Actor that was killed since it hung -> the fault to report."""
        self.starting: dict[Any, tuple[Any, float]] = {}
        """Ray's reference -> actor whose process does not answer yet, and since when it is waited for."""
        self.actors: list[Any] = []
        self.at_once = _at_once(job)
        """Shards that a worker computes at once."""
        self.made = 0
        """Actors so far, those that have left included: the number of the next one."""
        self.places = nodes.places()
        if job.spec.pool != "tasks":
            _check_placeable(job, self.places)
            self._grow(min(side_by_side(job), shards))

    def _grow(self, size: int) -> list[Any]:
        """Make actors until there are `size`; return the new ones."""
        options: dict[str, Any] = {"num_cpus": _reserved(self.job), "num_gpus": self.job.workers.gpus}
        options |= {"max_concurrency": MOST_AT_ONCE} if self.at_once > 1 else {}
        remote = ray.remote(max_restarts=-1, max_task_retries=-1, **options)(Worker)
        new = []
        for _ in range(size - len(self.actors)):
            new.append(remote.options(**_on(self.places)).remote(self.job, self.made))
            self.made += 1
        self.actors += new
        return new

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
        pids: dict[str, list[int]] = defaultdict(list)
        for process in self.process_of.values():
            pids[process.node].append(process.pid)
        dead = ray_cluster.dead_process()  # no task runs then, and ray.kill would wait for it
        families = nodes.run_on(nodes.family, {node: (own,) for node, own in pids.items()}, nodes.CHECK_S)
        for actor in [] if dead else self.actors:
            with contextlib.suppress(RayError):
                ray.kill(actor)
        self.actors, self.process_of = [], {}
        known = {node: (family, 0.0 if dead else ENDING_S) for node, family in families.items() if family}
        silent = [node for node, family in families.items() if isinstance(family, Exception)]
        ends = nodes.run_on(nodes.end, {node: own for node, own in known.items() if node not in silent}, ENDS_WITHIN_S)
        alive = [pid for left in ends.values() if not isinstance(left, Exception) for pid in left]
        if alive:
            left = ", ".join(map(str, alive))
            raise SparringError(
                f"{self.job.out.name}: the worker processes {left} did not end, so their memory is not free; "
                "end them, then run again."
            )
        for node in [*silent, *(node for node, left in ends.items() if isinstance(left, Exception))]:
            self.message(f"{self.job.out.name}: the node {nodes.host(node)} does not say whether its workers ended")

    def map(
        self,
        job: Job,
        shards: list[Shard],
        on_worker: Callable[[dict[str, Any]], None],
        message: Callable[[str], None],
        on_load: Callable[[int, Load], None] = lambda pid, load: None,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (shard index, record) as shards are done; `on_worker` gets each worker's vitals (stages/vitals.py),
        of new ones too, and again after a shard where EVERY_S have passed. `on_load` gets the pid of a worker and the
        model that it has loaded.

        A shard whose worker dies, fails or is past its deadline is computed again, by whoever is free first. Where it
        fails again and the step's shards can be split, the prompts that make it fail are found and dropped. The others
        work on meanwhile. `message` gets a line about each of these.
        """
        self.job, self.loaded, self.message, self.ready_at = job, True, message, 0.0
        self.on_worker, self.on_load = on_worker, on_load
        self.at_once = _at_once(job)
        self.alone: set[Any] = set()
        """Actors that compute one shard and get no other beside it: one that has failed, or a part that is tried."""
        self.under_way = Counter[Any]()
        """Shards of each actor."""
        self.answered: dict[Any, float] = {}
        """Actor -> when it has last answered (time.monotonic)."""
        self.sent = ray.put(job)  # once: it lists every file of its inputs, thousands of them
        self.reported: dict[int, float] = {}
        """pid -> when `on_worker` got its vitals."""
        self.deadline = ShardDeadline(job.workers.deadline_s)
        self.waiting: deque[tuple[Shard, Search | None]] = deque((shard, None) for shard in shards)
        self.failures, self.load_failures = Counter[int](), Counter[Any]()
        self.warned: set[str] = set()
        self.running: dict[Any, Call] = {}
        self.patience, self.waits_for_place, self.looked_at = Patience(), True, -math.inf
        self.starting, self.replaced = {}, {}
        # A worker counts as started when its process answers: on a busy cluster some wait for others' cores and GPUs.
        self._await_process(self.actors)
        self.idle: list[Any] = []
        """Actors, each as often as it can take a shard; None: a task."""
        if not self.actors:
            self.ready_at = time.monotonic()
            self.idle = [None] * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while self.waiting or self._computing():
            ray_cluster.check_alive()
            self._follow_nodes()
            self._submit()
            references = [*self.running, *self.starting]
            if references:
                ray.wait(references, num_returns=1, timeout=POLL_S)
            else:  # no actor is left
                time.sleep(POLL_S)
            for reference in _ready(references):
                if reference in self.starting:
                    self._started(self.starting.pop(reference)[0], reference)
                elif reference in self.running:  # else it failed with another shard of its worker
                    call = self.running.pop(reference)
                    if result := self._collect(reference, call):
                        yield result
            self._check_wait()
            # A result that has arrived but was not collected yet belongs to no hung worker.
            done = _ready(list(self.running))
            self._end_hung([call for reference, call in self.running.items() if reference not in done])

    def _computing(self) -> bool:
        """Return whether a shard is being computed; at a step's end, workers that still load are not waited for."""
        return any(call.shard for call in self.running.values())

    def _submit(self) -> None:
        """Give shards to idle actors, or to tasks."""
        for actor in self.idle[::-1]:
            place = next((i for i, item in enumerate(self.waiting) if self._may_take(actor, *item)), None)
            if place is None:
                continue
            shard, search = self.waiting[place]
            del self.waiting[place]
            self.idle.remove(actor)
            self.under_way[actor] += 1
            if self.at_once > 1 and self._is_alone(shard, search):
                self.alone.add(actor)
                self._rest(actor)
            # Ray restarts a worker but does not retry its shard: `map` does, which counts the failures and asks why.
            method = (actor.probe if search else actor.run) if actor else None
            run = method.options(max_task_retries=0) if method else _task(self.job, run_task, self.places)
            self.running[run.remote(self.sent, shard)] = Call(actor, shard, search)

    def _may_take(self, actor: Any, shard: Shard, search: Search | None) -> bool:
        return actor not in self.alone and not (self.under_way[actor] and self._is_alone(shard, search))

    def _is_alone(self, shard: Shard, search: Search | None) -> bool:
        """Return whether a shard may share its worker with no other, since it may be the one that makes it fail."""
        return search is not None or self.failures[shard.index] > 0

    def _rest(self, actor: Any) -> None:
        """Give an actor no more shards for now."""
        self.idle = [one for one in self.idle if one != actor]

    def _await_process(self, actors: Iterable[Any]) -> None:
        for actor in actors:
            self.starting[actor.process.remote()] = (actor, time.monotonic())

    def _started(self, actor: Any, reference: Any) -> None:
        """Have a worker whose process answers load its models."""
        try:
            node, vitals = _result(self.job, reference)
        except NodeLost:
            self._drop(actor)
            return
        except EngineFault as fault:
            raise _stop(self.job, fault) from None
        process = Process(node, vitals["pid"])
        if process == self.replaced.get(actor):  # it still answers, or only its connection was lost
            ray.kill(actor, no_restart=False)
            time.sleep(POLL_S / 20)
            self._await_process([actor])
            return
        self.process_of[actor] = process
        self._report(vitals)
        self.running[actor.load.options(max_task_retries=0).remote(self.sent)] = Call(actor, None)

    def _follow_nodes(self) -> None:
        """Drop the actors of nodes that are gone, and make as many as the step can use on the nodes there are."""
        if not ray_cluster.joined() or time.monotonic() < self.looked_at + NODES_S:
            return
        before, self.looked_at = self.places.nodes.keys(), time.monotonic()
        self.places = nodes.places(self.message)
        gone = {process for process in self.process_of.values() if process.node not in self.places.nodes}
        lost = [actor for actor in self.actors if self.process_of.get(actor) in gone]
        if before != self.places.nodes.keys():  # an actor without a process may wait for a node that is gone
            left = bool(before - self.places.nodes.keys())
            waiting = [(one, since) for one, since in self.starting.values() if one not in self.process_of]
            lost += [one for one, since in waiting if left or time.monotonic() - since > SILENCE_S]
        for actor in lost:
            self._drop(actor)
        if lost:  # a worker that was only cut off may still write: under names of its own
            self.job = replace(self.job, attempt=uuid.uuid4().hex[:8])
            self.sent = ray.put(self.job)
        if self.job.spec.pool != "tasks":
            unfinished = len(self.waiting) + sum(bool(call.shard) for call in self.running.values())
            self._await_process(self._grow(min(side_by_side(self.job, self.places), unfinished)))
        if lost:
            self.message(f"{self.job.out.name}: {len(lost)} workers were lost, it goes on with {len(self.actors)}")

    def _drop(self, actor: Any) -> None:
        """Let go of an actor; what it was doing is done first by the next one that is free."""
        for reference, call in list(self.running.items()):
            if call.actor == actor:
                del self.running[reference]
                if call.shard:
                    self.waiting.appendleft((call.shard, call.search))
        self.starting = {reference: one for reference, one in self.starting.items() if one[0] != actor}
        self._forget(actor)
        self.actors.remove(actor)
        for known in (self.process_of, self.replaced, self.ended):
            known.pop(actor, None)
        with contextlib.suppress(RayError):
            ray.kill(actor)

    def _check_wait(self) -> None:
        """Report what a driver without results waits for; SparringError where no worker starts at all."""
        for_place = not self.running
        if self._computing() or self.idle:
            self.patience.restart()
            return
        if for_place != self.waits_for_place:
            self.patience.restart()
            self.waits_for_place = for_place
        what = "its workers still load their models"
        if for_place:
            room = bool(self.places.capacity(_workers(self.job))) or ray_cluster.autoscales()
            most = PLACEMENT_S if room else LOST_S
            needed = f"{_reserved(self.job)} CPUs and {self.job.workers.gpus} GPUs"
            what = f"no worker answers yet: it still starts, or waits for {needed} that others hold"
            what = what if room else f"no node is left that has {needed}, and none has joined"
            if self.patience.waited_s > most:
                raise SparringError(f"{self.job.out.name}: {what}, for {most:.0f} s now; {RUN_AGAIN}")
            what += f", at most {most:.0f} s"
        if self.patience.is_due():
            self.message(f"{self.job.out.name}: {what}, {self.patience.waited_s:.0f} s so far")

    def _report(self, vitals: dict[str, Any]) -> None:
        if time.monotonic() - self.reported.get(vitals["pid"], -EVERY_S) >= EVERY_S:
            self.reported[vitals["pid"]] = time.monotonic()
            self.on_worker(vitals)

    def _collect(self, reference: Any, call: Call) -> tuple[int, dict[str, Any]] | None:
        """Return of a shard its index and its record; None of other calls and of a failure."""
        actor, shard = call.actor, call.shard
        try:
            result = _result(self.job, reference, shard)
        except EngineFault as error:
            if isinstance(error, NodeLost) and actor:
                self.running[reference] = call
                self._drop(actor)
            else:
                self._failed(call, self.ended.pop(actor, error))
            return None
        self.ended.pop(actor, None)
        self.answered[actor] = time.monotonic()
        self.under_way[actor] -= shard is not None
        all_places = shard is None or actor in self.alone
        self.alone.discard(actor)
        self.idle += [actor] * (self.at_once if all_places else 1)
        if shard is None:
            self.load_failures[actor], self.ready_at = 0, self.ready_at or time.monotonic()
            self._report_loads(actor, result)
            for text in result.warnings:
                if text not in self.warned:  # every worker that loads the same models has the same warnings
                    self.warned.add(text)
                    self.message(f"{self.job.out.name}: {text}")
        elif call.search:
            self._go_on(call.search, None)
        else:
            self.deadline.record(time.monotonic() - call.begun)
            vitals, record = result
            self._report(vitals)
            return shard.index, record
        return None

    def _report_loads(self, actor: Any, result: Loaded) -> None:
        for load in result.loads:
            self.on_load(self.process_of[actor].pid, load)

    def _failed(self, call: Call, fault: EngineFault) -> None:
        """Count a failure, have the shard done again or its prompts tried, and start the worker again."""
        name, shard = self.job.out.name, call.shard
        if shard is None:
            self._load_failed(call.actor, fault)
        elif call.search:
            rows = len(shard.payload["rows"])
            many = "1 prompt" if rows == 1 else f"{rows} prompts"
            self.message(f"{name}: {many} of shard {shard.index} alone: {fault}; its worker starts again")
            self._go_on(call.search, fault)
        else:
            self.failures[shard.index] += 1
            self._retry(shard, fault, self.failures[shard.index] if call.actor else 1 + self.job.workers.max_failures)
        for reference, other in list(self.running.items()):  # what shared its worker: one of these may be at fault
            if other.actor == call.actor and other.shard:
                del self.running[reference]
                self.failures[other.shard.index] += 1
                self.waiting.appendleft((other.shard, None))
        self._forget(call.actor)
        self.replaced[call.actor] = self.process_of.pop(call.actor)
        if not isinstance(fault, WorkerDied):
            ray.kill(call.actor, no_restart=False)
        self._await_process([call.actor])

    def _forget(self, actor: Any) -> None:
        """Forget what an actor was doing and could take."""
        self._rest(actor)
        self.alone.discard(actor)
        self.under_way.pop(actor, None)

    def _load_failed(self, actor: Any, fault: EngineFault) -> None:
        """Count a worker's failure to load its models; EngineFault after too many."""
        self.load_failures[actor] += 1
        if self.job.workers.gives_up(self.load_failures[actor]):
            raise EngineFault(
                f"{self.job.out.name}: its worker failed {self.load_failures[actor]} times while it loaded its models, "
                f"before any prompt: {fault}; details: {log_files(self.job)}."
            )
        self.message(f"{self.job.out.name}: while it loaded its models, {fault}; it is started again")

    def _retry(self, shard: Shard, fault: EngineFault, failures: int) -> None:
        """Have a shard done again, or find the prompts that make it fail; EngineFault after too many failures."""
        name = self.job.out.name
        if self.job.workers.gives_up(failures):
            raise EngineFault(
                f"{name}: shard {shard.index} failed {failures} times (hardware.max_failures), at last because "
                f"{fault}; details: {log_files(self.job)}. Run again to resume from the finished shards."
            )
        self.message(f"{name}: shard {shard.index}: {fault}; it is done again")
        if failures == TRIES_BEFORE_BISECTION and self.job.spec.narrow:
            others = [one for one, search in self.waiting if not search]
            others.sort(key=lambda one: self.failures[one.index])
            self._go_on(Search(poison_search(self.job, shard, fault, others, self.message)), None)
        else:
            self.waiting.appendleft((shard, None))

    def _go_on(self, search: Search, outcome: EngineFault | None) -> None:
        """Give a search the outcome of its last try; have its next one done first, or what it leaves of the shard."""
        try:
            self.waiting.appendleft((search.probes.send(outcome), search))
        except StopIteration as end:
            self.waiting.appendleft((end.value, None))

    def _end_hung(self, calls: list[Call]) -> None:
        """Kill the actors whose shard or loading is past its deadline; Ray starts new processes for them."""
        allowed = self.deadline.allowed_s()
        for call in calls:
            spent = time.monotonic() - max(call.begun, self.answered.get(call.actor, 0.0))
            if spent > allowed and call.actor and call.actor not in self.ended:
                fault = WorkerDied(f"it took longer than {allowed:.0f} s (hardware.shard_deadline_s) and was ended")
                self.ended[call.actor] = fault
                what = f"shard {call.shard.index} has taken" if call.shard else "its models have been loading for"
                self.message(f"{self.job.out.name}: {what} {spent:.0f} s; its worker is ended")
                ray.kill(call.actor, no_restart=False)


def _at_once(job: Job) -> int:
    return int(resolve(job.spec.at_once)(job)) if job.spec.at_once else 1


def side_by_side(job: Job, places: Places | None = None) -> int:
    """Return how many workers the step has: its count, or as many as the machines hold, and never more than that.

    Steps of tasks have as many as this machine has cores. places: the nodes that may get work, asked for where not
    given.
    """
    if job.spec.pool == "tasks":
        return os.cpu_count() or 1
    one = _workers(job)
    capacity = (places or nodes.places()).capacity(one) if one.cpus or one.gpus else sys.maxsize
    return max(1, min(job.workers.count or capacity, capacity))


def finish(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the step's summary, computed in a task from the written parts, one at a time in memory."""
    return _result_or_stop(job, _task(job, finish_task, nodes.places()).remote(job, records))


def _task(job: Job, function: Callable[..., Any], places: Places) -> Any:
    # Tasks reserve no core: idle actors may hold all of them, and these tasks are light.
    return ray.remote(num_cpus=0, max_retries=job.workers.max_failures)(function).options(**_on(places))


def _on(places: Places) -> dict[str, Any]:
    """Return Ray's options that keep a task or an actor on these nodes."""
    return {"label_selector": places.selector} if places.selector else {}


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
    except (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
        if disk_is_full(error, job.out):
            raise DataError(full_disk(job.out)) from None
        ray_cluster.check_alive()
        raise WorkerDied("its worker died (out of memory, or killed)") from None
    except (ActorUnschedulableError, TaskUnschedulableError):
        raise NodeLost("the node of its worker is gone") from None
    except RayError as error:
        ray_cluster.check_alive()
        raise SparringError(f"{job.out.name}: Ray failed: {first_line(error)}. {RUN_AGAIN}") from None


def _result_or_stop(job: Job, reference: Any) -> Any:
    """Return the result of a call that computes no shard; a dead worker raises SparringError."""
    try:
        return _result(job, reference)
    except EngineFault as fault:
        raise _stop(job, fault) from None


def _stop(job: Job, fault: EngineFault) -> SparringError:
    return SparringError(f"{job.out.name}: {fault}; details: {log_files(job)}")


def _check_placeable(job: Job, places: Places) -> None:
    """SparringError when no machine of the cluster has the cores or GPUs that one worker needs."""
    for resource, key in (("CPU", "cpus"), ("GPU", "gpus")):
        most = max((machine.get(resource, 0) for machine in places.nodes.values()), default=0)
        if (needed := getattr(job.workers, key)) > most:
            raise SparringError(
                f"{job.out.name}: a worker needs {needed} {resource}s, the largest node has {most:.0f}; "
                f"lower the {key} of hardware (see conf/hardware)."
            )


def _workers(job: Job) -> Workers:
    """Return the step's workers with the cores that each reserves."""
    return replace(job.workers, cpus=_reserved(job))


def _reserved(job: Job) -> int:
    """Return the cores that a worker reserves. On this machine alone none: one step follows another, and an idle worker
    must hold no cores."""
    return job.workers.cpus if ray_cluster.joined() or job.workers.gpus else 0


def _process_settings(job: Job) -> Any:
    """Return the settings that a worker's process was started with; only the driver uses the deadline."""
    workers, settings = replace(job.workers, deadline_s=math.inf), job.settings
    if not isinstance(settings, SampleSettings):
        return workers
    sampler, hardware = settings.sampler, settings.hardware
    engine = getattr(sampler, "engine_args", None), sampler.reproducible
    return workers, settings.max_model_len, engine, hardware.gpu_memory, hardware.kv_cache_gb


def _models(job: Job) -> dict[str, str]:
    return {role: source.digest for role, source in job.inputs.items() if role.rpartition(".")[2] in MODELS}
