"""Executes a plan, step by step: lease, shards on actors or tasks of Ray, manifest, links.

Of a step that is a hit only the manifest is read; Ray starts only when a step needs it.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparring.pipeline.execution import in_process, nodes, ray_cluster, signals
from sparring.pipeline.execution.events import Events
from sparring.pipeline.planning.placement import check_placement
from sparring.pipeline.planning.plan import Plan, State, Step, input_digest, inspect, step_state, to_redo
from sparring.pipeline.runs.references import note_plan, wait_for_removal
from sparring.pipeline.store import remote
from sparring.pipeline.store.code_digest import code_of
from sparring.pipeline.store.files import files_below
from sparring.pipeline.store.lease import Lease, LeaseHeld
from sparring.pipeline.store.manifest import MANIFEST, Artifact, Manifest, publish, tidy
from sparring.pipeline.store.parts import finished_parts
from sparring.stages.errors import DataError, SparringError
from sparring.stages.fields import identity
from sparring.stages.fingerprint import digest
from sparring.stages.loaded import Load
from sparring.stages.step import File, Input, Job, resolve

if TYPE_CHECKING:  # it imports Ray, which takes seconds
    from sparring.pipeline.execution.actor_pool import ActorPool

LOOK_AHEAD = 3
"""Steps whose workers are started early."""


def label_of(step: Step) -> str:
    """Return how events name a step: `iteration 1 sample`."""
    return f"iteration {step.uses[0].iteration} {step.uses[0].label}"


def steps_to_warm_up(steps: Sequence[Step], step: Step) -> list[Step]:
    """Return those of the next steps, up to the next training, whose workers have something to prepare."""
    first = steps.index(step) + 1
    following = takewhile(lambda one: not one.spec.run, steps[first : first + LOOK_AHEAD])
    return [one for one in following if one.spec.prepare]


@dataclass
class Pace:
    """Seconds that a step has left: the start of its workers is not counted.

    first: when the first worker could begin (time.monotonic), and how many were done before; None: at the first result.
    """

    first: tuple[float, int] | None = None

    def left_s(self, done: int, of: int) -> float | None:
        """Return the seconds left after `done` of `of`; None where nothing was done since the clock began."""
        now = time.monotonic()
        self.first = self.first or (now, done)
        since, done_before = self.first
        return (now - since) / (done - done_before) * (of - done) if done > done_before else None


@dataclass(kw_only=True)
class Executor:
    """Executes a plan; `states` holds the steps that are finished so far."""

    plan: Plan
    store: Path
    run: str
    scratch: Path
    events: Events
    on_done: Callable[[Step, Manifest], None]
    gpus: int = 0
    redo: frozenset[str] = frozenset()
    """Steps to make again although they are finished."""
    wanted: Callable[[Step], bool] = lambda step: True
    """Predicate per step; if False the step is skipped. Its dependents must be skipped too."""
    states: dict[str, State] = field(default_factory=dict, init=False)
    _again: dict[str, State] = field(default_factory=dict, init=False)
    """Finished steps whose files were dropped, and are read by steps to make."""
    _ray: bool = field(default=False, init=False)
    _pools: dict[str, ActorPool] = field(default_factory=dict, init=False)
    _made_with: dict[str, Any] = field(default_factory=dict, init=False)
    _modules: dict[str, dict[str, str]] = field(default_factory=dict, init=False)

    def execute(self) -> int:
        """Make every wanted step that is not a hit; return how many were made."""
        made = 0
        if bucket := remote.of(self.store):
            bucket.check_conditional()
        states = inspect(self.plan, self.store, self.redo)
        self._again = {name: one for name, one in states.items() if one.dropped and one.kind != "hit"}
        try:
            for step in self.plan.steps.values():
                made += self.wanted(step) and self._ensure(step)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._close_pools(*self._pools)
            raise
        finally:
            if self._ray:
                try:
                    self._close_pools(*self._pools)
                finally:
                    ray_cluster.stop_ray()
        return made

    def _ensure(self, step: Step) -> bool:
        """Make a step unless it is a hit; return whether it was made."""

        def waiting(holder: str) -> None:
            self.events.message(f"{step.name} is being made by {holder}; waiting to adopt it")

        artifact, owner, made = self._artifact(step), f"run {self.run}", False
        state = self._state(step, artifact)
        if state.kind == "hit" and state.manifest:
            tidy_after_kill(artifact, state.manifest, owner, waiting)
        else:
            with Lease(artifact.lease, owner).acquire(wait=True, waiting=waiting):
                state = self._state(step, artifact)
                if state.kind == "hit" and state.manifest:  # another run has made it meanwhile
                    tidy(artifact, state.manifest)  # and may have been killed before it did so
                else:
                    state, made = self._make_or_adopt(step, artifact, state), True
        assert state.manifest is not None
        self.states[step.fingerprint] = state
        self.on_done(step, state.manifest)
        return made

    def _state(self, step: Step, artifact: Artifact) -> State:
        artifact.refresh()
        state = step_state(self.plan, step, artifact, self.states)
        if state.kind == "hit" and state.dropped and step.fingerprint in self._again:
            return self._again[step.fingerprint]
        return to_redo(state) if step.fingerprint in self.redo else state

    def _make_or_adopt(self, step: Step, artifact: Artifact, state: State) -> State:
        """Make the step. Where another run was first in spite of the lease, its artifact is as good as ours."""
        try:
            self._make(step, artifact, state)
        except (SparringError, FileNotFoundError):
            self._close_pools(*(kind for kind, pool in self._pools.items() if pool.loaded))
            made = self._state(step, artifact)
            if made.kind == "hit":
                return made
            raise
        made = step_state(self.plan, step, artifact, self.states)
        if made.kind != "hit":
            raise SparringError(f"{step.name}: published, but {made.why}; run again.")
        return made

    def _artifact(self, step: Step) -> Artifact:
        return Artifact(self.store, step.spec.kind, step.fingerprint)

    def _close_pools(self, *kinds: str) -> None:
        for kind in kinds:
            self._pools.pop(kind).close()

    def _make_room(self, used: ActorPool | None = None) -> None:
        """End the workers of the steps before, or have them drop their large models, so that memory is free for others.

        used: those that the next step takes. Annotators that hold no resources stay, with their small models.
        """
        for kind, pool in list(self._pools.items()):
            if pool is used or not pool.loaded:
                continue
            if kind == "annotators" and not pool.holds_resources:
                pool.drop_large_models()
            else:
                self._close_pools(kind)

    def _make(self, step: Step, artifact: Artifact, state: State) -> None:
        stale = artifact.raw() if state.kind == "stale" else None
        if stale is not None:
            self.events.warning(f"{step.name}: {state.why}; it is replaced when its successor is complete")
        self._made_with = self._made_with or {
            **ray_cluster.software(),
            "hardware": ray_cluster.hardware(),
        }
        self._ensure_ray(step)
        inputs = self._inputs(step)
        artifact.path.mkdir(parents=True, exist_ok=True)
        job = self._job(step, inputs)
        if step.spec.run:
            self._make_room()
        if step.spec.pool in ("tasks", "in_process"):
            self._warm_up_after(step)
        show = {"step": step.name, "kind": step.spec.kind, "label": label_of(step)}
        manifest = self._run_driver(job, show, state) if step.spec.run else self._run_shards(job, show, state)
        tidy(artifact, publish(artifact, manifest, stale))
        self.events("step_done", **show, seconds=manifest.seconds, rows=manifest.rows)

    def _inputs(self, step: Step) -> dict[str, Input]:
        inputs, bucket = {}, remote.of(self.store)
        for role, name in step.inputs.items():
            if name in self.plan.externals:
                inputs[role] = replace(self.plan.externals[name], role=role)
                if bucket and ray_cluster.joined() and not inputs[role].pull:
                    remote.share(bucket, inputs[role])
            else:
                manifest = self.states[name].manifest
                assert manifest is not None and input_digest(self.plan, name, self.states)
                if self.states[name].dropped:  # it was no hit after all: an input was made again, of other bytes
                    raise DataError(
                        f"{step.name}: {manifest.name}, which it reads, was dropped; run again to make it again."
                    )
                source = self._artifact(self.plan.steps[name]).as_input(role, manifest)
                inputs[role] = replace(source, root=source.root.absolute())
        return inputs

    def _job(self, step: Step, inputs: dict[str, Input]) -> Job:
        self.scratch.mkdir(parents=True, exist_ok=True)
        modules = self._modules[step.fingerprint] = code_of(step.spec, step.settings)
        return Job(
            spec=step.spec,
            fingerprint=step.fingerprint,
            settings=step.settings,
            workers=step.workers,
            inputs=inputs,
            out=self._artifact(step).path.absolute(),
            attempt=uuid.uuid4().hex[:8],
            scratch=self.scratch.absolute(),
            code=digest(modules),
            store=bucket.url if (bucket := remote.of(self.store)) else "",
        )

    def _ensure_ray(self, step: Step) -> None:
        """Start or join Ray, unless that is done, where this step or a later one needs it."""
        todo = [one for one in self.plan.steps.values() if not self._is_made(one)]
        if self._ray or not any(one.spec.pool != "in_process" and self.wanted(one) for one in (step, *todo)):
            return
        joined = ray_cluster.joined()
        self.events.message("joining the Ray cluster" if joined else "starting Ray")
        if not joined:
            check_placement(todo, [ray_cluster.this_machine()], "this machine", alone=True)
        dashboard = any(config.hardware.dashboard for config in self.plan.configs.values())
        address = ray_cluster.start_ray(self.gpus, self.scratch / "ray.log", dashboard)
        self._ray = True
        if address:
            self.events.message(f"Ray's dashboard: http://{address}")
        if joined:
            shared = () if remote.of(self.store) else (self.store, self.scratch)
            nodes.join(shared, os.environ["RAY_ADDRESS"])
        if joined and not ray_cluster.autoscales():
            check_placement(todo, ray_cluster.machines(), f"the cluster {os.environ['RAY_ADDRESS']}")

    def _is_made(self, step: Step) -> bool:
        """Return whether a step's artifact has a manifest, valid or not."""
        return (self._artifact(step).path / MANIFEST).exists()

    def _warm_up_after(self, step: Step) -> None:
        """Start the workers of the next steps beside a light step or a training: imports keep one core busy each.

        Only on this machine and its CPUs: elsewhere an idle worker would hold the resources that this step waits for.
        """
        if ray_cluster.joined():
            return
        for later in steps_to_warm_up(list(self.plan.steps.values()), step):
            needed = self.wanted(later) and not self._is_made(later) and later.spec.pool not in self._pools
            if needed and later.workers.gpus == 0:
                from sparring.pipeline.execution.actor_pool import ActorPool

                pool = ActorPool(self._job(later, {}), later.workers.count)
                pool.prepare()
                self._pools[later.spec.pool] = pool

    def _run_shards(self, job: Job, show: dict[str, Any], state: State) -> Manifest:
        if job.spec.pool == "in_process":
            self.events.message(f"{job.out.name}: reading its input files")
        shards = resolve(job.spec.shards)(job)
        records = finished_parts(job)
        todo = [shard for shard in shards if shard.index not in records]
        why = "resumed" if records else state.why
        self.events("step_started", **show, why=why, done=len(records), of=len(shards), attempt=job.attempt)
        if todo:
            done_before, tokens, workers = len(records), 0.0, self._workers(job, len(todo))

            def on_load(pid: int, load: Load) -> None:
                self.events("load", **show, pid=pid, **load._asdict())

            results = workers.map(
                job, todo, lambda worker: self.events("worker", **show, **worker), self.events.warning, on_load
            )
            for index, record in results:
                records[index] = record
                tokens += record["stats"].get("tokens", 0)
                done, spent = len(records), time.monotonic() - workers.ready_at
                eta = Pace((workers.ready_at, done_before)).left_s(done, len(shards))
                rate = tokens / spent
                self.events("shard", **show, done=done, of=len(shards), tokens_per_s=rate, eta_s=eta, busy_s=spent)
        ordered = [records[shard.index] for shard in shards]
        if job.spec.pool == "in_process":
            summary, side_by_side = in_process.finish(job, ordered), 1
        else:
            from sparring.pipeline.execution import actor_pool

            summary, side_by_side = actor_pool.finish(job, ordered), actor_pool.side_by_side(job)
        return self._manifest(
            job,
            files=tuple(File(**record["file"]) for record in ordered),
            rows={
                "in": sum(record["rows_in"] for record in ordered),
                "out": sum(record["rows_out"] for record in ordered),
                "dropped": _sum(record["dropped"] for record in ordered),
            },
            summary=summary,
            seconds=sum(record["seconds"] for record in ordered) / max(1, min(side_by_side, len(ordered))),
            stats=_sum(record["stats"] for record in ordered),
            attempts=[*sorted({record["attempt"] for record in ordered} - {job.attempt}), job.attempt],
        )

    def _workers(self, job: Job, shards: int) -> in_process.InProcess | ActorPool:
        """Return workers for the step: those of the last steps where they fit. Tasks hold no resources.

        One set of models at a time: the workers of the steps before are ended, and their memory is free, before new
        ones load theirs.
        """
        kind = job.spec.pool
        if kind == "in_process":
            return in_process.InProcess()
        from sparring.pipeline.execution.actor_pool import ActorPool

        if kind == "tasks":
            return ActorPool(job, shards)
        kept = self._pools.get(kind)
        fits = kept is not None and kept.fits(job, shards)
        if kept and not fits:
            self._close_pools(kind)
        self._make_room(self._pools.get(kind))
        if not fits:
            self._pools[kind] = ActorPool(job, shards)
        return self._pools[kind]

    def _run_driver(self, job: Job, show: dict[str, Any], state: State) -> Manifest:
        run = resolve(job.spec.run)  # its imports take seconds; a signal meanwhile is not held back
        with signals.held() as received:
            begun, pace = time.monotonic(), Pace()
            self.events("step_started", **show, why=state.why, done=0, of=0, attempt=job.attempt)

            def report(fields: dict[str, Any]) -> None:
                name = "train_step" if "done" in fields else fields.pop("event", "worker")
                extra = {"eta_s": pace.left_s(fields["done"], fields["of"])} if fields.get("done") else {}
                self.events(name, **show, **{**extra, **fields})

            def stop_signal() -> int:
                """Return the signal at which the step is to save its state, or 0; SparringError where Ray has died."""
                ray_cluster.check_alive()
                return received()

            made = run(job, report, stop_signal, lambda: nodes.places(self.events.message))
            return self._manifest(
                job,
                files=files_below(job.out, made.files),
                rows=made.rows,
                summary=made.summary,
                seconds=time.monotonic() - begun,
                stats=made.stats,
                attempts=[job.attempt],
            )

    def _manifest(self, job: Job, **made: Any) -> Manifest:
        """Return the manifest of a step: what it is, and the fields of `made`."""
        names = self.plan.steps[job.fingerprint].inputs
        return Manifest(
            fingerprint=job.fingerprint,
            step=job.spec.kind,
            version=job.spec.version,
            identity=identity(job.settings),
            inputs={role: {"name": names[role], "digest": source.digest} for role, source in job.inputs.items()},
            made_with={
                **self._made_with,
                "modules": self._modules[job.fingerprint],
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            **made,
        )


def _sum(records: Iterable[dict[str, float]]) -> dict[str, Any]:
    """Return the sums of all records, key by key."""
    total: dict[str, Any] = {}
    for record in records:
        for key, value in record.items():
            total[key] = total.get(key, 0) + value
    return total


def tidy_after_kill(artifact: Artifact, manifest: Manifest, owner: str, waiting: Callable[[str], None]) -> None:
    """Remove what a process left in a finished artifact if it was killed before it removed its lease.

    Nothing is removed where the store cannot be written, or where another run has replaced the artifact meanwhile.
    """
    if artifact.lease.exists():
        with (
            contextlib.suppress(LeaseHeld, DataError),
            Lease(artifact.lease, owner).acquire(wait=False, waiting=waiting),
        ):
            if artifact.manifest() == manifest:
                tidy(artifact, manifest)


def execute_alone(plan: Plan, store: Path, run: str, scratch: Path) -> None:
    """Make the missing steps of a plan that belongs to no run's record; events and logs go into `scratch`."""
    events = Events(scratch / "events.jsonl")
    try:
        note_plan(scratch, (step.name for step in plan.steps.values()))
        wait_for_removal(store, events.message)
        Executor(
            plan=plan,
            store=store,
            run=run,
            scratch=scratch,
            events=events,
            on_done=lambda step, manifest: None,
            gpus=ray_cluster.gpu_count(),
        ).execute()
    finally:
        events.close()
