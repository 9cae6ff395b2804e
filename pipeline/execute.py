"""Drives a plan on Ray, step by step: lease, shards on actors or tasks, manifest, links. Ray schedules and retries.

A step that is a hit costs a look at its manifest; Ray starts only when something is to be done on it.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from sparring.pipeline import cluster, stopping
from sparring.pipeline.artifact import (
    MANIFEST,
    Artifact,
    Manifest,
    files_below,
    finished_parts,
    publish,
    tidy,
)
from sparring.pipeline.code_digest import code_of
from sparring.pipeline.events import Events
from sparring.pipeline.lease import Lease, LeaseHeld
from sparring.pipeline.planning.placement import check_placement, this_machine
from sparring.pipeline.planning.plan import Plan, State, Step, input_digest, step_state, to_redo
from sparring.stages.errors import DataError, SparringError
from sparring.stages.fingerprint import digest
from sparring.stages.step import File, Input, Job, resolve

LOOK_AHEAD = 3
"""Steps whose workers are started early."""


def _side_by_side(job: Job) -> int:
    """Return how many shards are made at the same time."""
    if job.spec.pool == "here":
        return 1
    from sparring.pipeline.pool import side_by_side

    return (os.cpu_count() or 1) if job.spec.pool == "tasks" else side_by_side(job)


def _summary(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    if job.spec.pool == "here":
        from sparring.pipeline.here import summary

        return summary(job, records)
    from sparring.pipeline.pool import finish

    return finish(job, records)


def _surroundings() -> dict[str, Any]:
    return {"code": cluster.code_version(), "packages": cluster.packages(), "hardware": cluster.hardware()}


def soon(steps: Sequence[Step], step: Step) -> list[Step]:
    """Return those of the next steps, up to the next training, whose workers have something to prepare."""
    first = steps.index(step) + 1
    coming = takewhile(lambda one: not one.spec.run, steps[first : first + LOOK_AHEAD])
    return [one for one in coming if one.spec.prepare]


class Pace:
    """Seconds that a step has left: the start of its workers is not counted.

    begun: when the first worker could begin (time.monotonic), with `known` done before; None: at the first result.
    """

    def __init__(self, begun: float | None = None, known: int = 0) -> None:
        self.first = None if begun is None else (begun, known)

    def left_s(self, done: int, of: int) -> float | None:
        """Return the seconds left after `done` of `of`; None where nothing was done since the clock began."""
        now = time.monotonic()
        self.first = self.first or (now, done)
        since, known = self.first
        return (now - since) / (done - known) * (of - done) if done > known else None


@dataclass(kw_only=True)
class Executor:
    """Executes a plan; `states` grows as steps are found or made."""

    plan: Plan
    store: Path
    run: str
    scratch: Path
    events: Events
    on_done: Callable[[Step, Manifest], None]
    gpus: int = 0
    redo: frozenset[str] = frozenset()
    """Steps to make again although they are there."""
    wanted: Callable[[Step], bool] = lambda step: True
    """Asked before each step; False leaves it out, and so every step that reads it must be."""

    def __post_init__(self) -> None:
        self.states: dict[str, State] = {}
        self._ray = False
        self._pools: dict[str, Any] = {}
        self._made_with: dict[str, Any] = {}
        self._modules: dict[str, dict[str, str]] = {}

    def execute(self) -> int:
        """Make every wanted step that is not a hit; return how many were made."""
        made = 0
        try:
            for step in self.plan.steps.values():
                made += self.wanted(step) and self._ensure(step)
        except BaseException:
            with contextlib.suppress(Exception):  # the first cause is what is said
                self._close_pools(lambda pool: True)
            raise
        finally:
            if self._ray:
                try:
                    self._close_pools(lambda pool: True)
                finally:
                    cluster.stop_ray()
        return made

    def _ensure(self, step: Step) -> bool:
        artifact = Artifact(self.store, step.spec.kind, step.fingerprint)
        state = self._state(step, artifact)
        if state.kind != "hit":
            lease = Lease(artifact.lease, f"run {self.run}")
            with lease.acquire(wait=True, waiting=partial(self._waiting, step)):
                state = self._state(step, artifact)
                if state.kind != "hit":
                    self.states[step.fingerprint] = self._make_or_adopt(step, artifact, state)
                    self._finish(step)
                    return True
                assert state.manifest is not None
                tidy(artifact, state.manifest)  # its maker may have been killed before it had done so
        else:
            assert state.manifest is not None
            tidy_after_kill(artifact, state.manifest, f"run {self.run}", partial(self._waiting, step))
        self.states[step.fingerprint] = state
        self._finish(step)
        return False

    def _state(self, step: Step, artifact: Artifact) -> State:
        state = step_state(self.plan, step, artifact, self.states)
        return to_redo(state) if step.fingerprint in self.redo else state

    def _make_or_adopt(self, step: Step, artifact: Artifact, state: State) -> State:
        """Make the step. Where another run was first in spite of the lease, its artifact is as good as ours."""
        try:
            self._make(step, artifact, state)
        except (SparringError, FileNotFoundError):
            self._close_pools(lambda pool: pool.loaded)
            made = self._state(step, artifact)
            if made.kind == "hit":
                return made
            raise
        made = step_state(self.plan, step, artifact, self.states)
        if made.kind != "hit":
            raise SparringError(f"{step.name}: published, but {made.why}; run again.")
        return made

    def _say(self, text: str) -> None:
        self.events("message", text=text)

    def _worker(self, show: dict[str, Any], pid: int) -> None:
        self.events("worker", **show, pid=pid)

    def _close_pools(self, chosen: Callable[[Any], bool]) -> None:
        for kind, pool in list(self._pools.items()):
            if chosen(pool):
                del self._pools[kind]
                pool.close()

    def _waiting(self, step: Step, holder: str) -> None:
        self.events("message", text=f"{step.name} is being made by {holder}; waiting to adopt it")

    def _finish(self, step: Step) -> None:
        manifest = self.states[step.fingerprint].manifest
        assert manifest is not None
        self.on_done(step, manifest)

    def _make(self, step: Step, artifact: Artifact, state: State) -> None:
        stale = artifact.raw() if state.kind == "stale" else None
        if stale is not None:
            self.events("message", text=f"{step.name}: {state.why}; it is replaced when its successor is complete")
        self._made_with = self._made_with or _surroundings()
        if step.spec.pool != "here":
            self._start_ray()
        job = self._job(step, artifact)
        if step.spec.run:
            self._close_pools(lambda pool: pool.loaded)
        if step.spec.pool == "tasks":
            self._look_ahead(step)
        label = f"iteration {step.uses[0].iteration} {step.uses[0].label}"
        show = {"step": step.name, "kind": step.spec.kind, "label": label}
        if step.spec.run:
            resolve(step.spec.run)  # its imports take seconds; a signal meanwhile is not held back
            with stopping.held() as received:
                manifest = self._run_driver(job, show, state, partial(_asked, received))
        else:
            manifest = self._run_shards(job, show, state)
        standing = publish(artifact, manifest, stale)
        tidy(artifact, standing)
        self.events("step_done", **show, seconds=manifest.seconds, rows=manifest.rows)

    def _job(self, step: Step, artifact: Artifact) -> Job:
        inputs = {role: self._input(role, name) for role, name in step.inputs.items()}
        artifact.path.mkdir(parents=True, exist_ok=True)
        return self._job_of(step, artifact, inputs)

    def _job_of(self, step: Step, artifact: Artifact, inputs: dict[str, Input]) -> Job:
        self.scratch.mkdir(parents=True, exist_ok=True)
        modules = self._modules[step.fingerprint] = code_of(step.spec, step.settings)
        return Job(
            spec=step.spec,
            fingerprint=step.fingerprint,
            settings=step.settings,
            workers=step.workers,
            inputs=inputs,
            out=artifact.path.absolute(),
            attempt=uuid.uuid4().hex[:8],
            scratch=self.scratch.absolute(),
            code=digest(modules),
        )

    def _input(self, role: str, name: str) -> Input:
        if name in self.plan.externals:
            return replace(self.plan.externals[name], role=role)
        step, state = self.plan.steps[name], self.states[name]
        assert state.manifest is not None and input_digest(self.plan, name, self.states)
        found = Artifact(self.store, step.spec.kind, name).as_input(role, state.manifest)
        return replace(found, root=found.root.absolute())

    def _start_ray(self) -> None:
        if not self._ray:
            self.events(
                "message",
                text="joining the Ray cluster" if cluster.joined() else "starting Ray",
            )
            todo = [s for s in self.plan.steps.values() if not (self._artifact(s).path / MANIFEST).exists()]
            if not cluster.joined():
                check_placement(todo, this_machine(), "this machine", alone=True)
            cluster.start_ray(self.gpus, self.scratch / "ray.log")
            self._ray = True
            if cluster.joined() and (nodes := cluster.nodes()) is not None:
                check_placement(todo, nodes, f"the cluster {os.environ['RAY_ADDRESS']}")

    def _artifact(self, step: Step) -> Artifact:
        return Artifact(self.store, step.spec.kind, step.fingerprint)

    def _look_ahead(self, step: Step) -> None:
        """Start the workers of the next steps beside a light step or a training: imports keep one core busy each.

        Only on this machine and its CPUs: elsewhere a worker that waits would hold what this step is waiting for.
        """
        from sparring.pipeline.pool import Pool

        for later in soon(list(self.plan.steps.values()), step):
            artifact = Artifact(self.store, later.spec.kind, later.fingerprint)
            needed = later.spec.pool not in self._pools and not (artifact.path / MANIFEST).exists()
            if needed and self.wanted(later) and later.workers.gpus == 0 and not cluster.joined():
                pool = Pool(self._job_of(later, artifact, {}), later.workers.count)
                pool.prepare()
                self._pools[later.spec.pool] = pool

    def _run_shards(self, job: Job, show: dict[str, Any], state: State) -> Manifest:
        shards = resolve(job.spec.shards)(job)
        records = finished_parts(job)
        todo = [shard for shard in shards if shard.index not in records]
        why = "resumed" if records else state.why
        self.events("step_started", **show, why=why, done=len(records), of=len(shards), attempt=job.attempt)
        known, tokens = len(records), 0.0
        workers: Any = self._workers(job, len(todo)) if todo else None
        for index, record in workers.map(job, todo, partial(self._worker, show), self._say) if todo else ():
            records[index] = record
            tokens += record["stats"].get("tokens", 0)
            done, spent = len(records), time.monotonic() - workers.ready_at
            eta = Pace(workers.ready_at, known).left_s(done, len(shards))
            self.events("shard", **show, done=done, of=len(shards), tokens_per_s=tokens / spent, eta_s=eta)
        ordered = [records[shard.index] for shard in shards]
        return self._manifest(job, ordered, _summary(job, ordered))

    def _workers(self, job: Job, shards: int) -> Any:
        """Return workers for the step: those of the last steps where they fit. Tasks hold nothing, disturb nobody.

        One set of models at a time: the memory of a step's workers is free before others load theirs.
        """
        kind = job.spec.pool
        if kind == "here":
            from sparring.pipeline.here import Here

            return Here()
        from sparring.pipeline.pool import Pool

        if kind == "tasks":
            return Pool(job, shards)
        kept = self._pools.get(kind)
        fits = kept is not None and kept.fits(job, shards)
        self._close_pools(lambda pool: not fits if pool is kept else pool.loaded)
        if not fits:
            self._pools[kind] = Pool(job, shards)
        return self._pools[kind]

    def _manifest(self, job: Job, records: list[dict[str, Any]], summary: dict[str, Any]) -> Manifest:
        dropped, stats = _add(r["dropped"] for r in records), _add(r["stats"] for r in records)
        rows = {
            "in": sum(r["rows_in"] for r in records),
            "out": sum(r["rows_out"] for r in records),
            "dropped": dropped,
        }
        attempts = [*sorted({r["attempt"] for r in records} - {job.attempt}), job.attempt]
        return Manifest(
            **self._common(job),
            files=tuple(File(**r["file"]) for r in records),
            rows=rows,
            summary=summary,
            seconds=sum(r["seconds"] for r in records) / max(1, min(_side_by_side(job), len(records))),
            stats=stats,
            attempts=attempts,
        )

    def _run_driver(self, job: Job, show: dict[str, Any], state: State, asked: Callable[[], int]) -> Manifest:
        begun, pace = time.monotonic(), Pace()
        self.events("step_started", **show, why=state.why, done=0, of=0, attempt=job.attempt)

        def report(fields: dict[str, Any]) -> None:
            name = "train_step" if "done" in fields else fields.pop("event", "worker")
            extra = {"eta_s": pace.left_s(fields["done"], fields["of"])} if fields.get("done") else {}
            self.events(name, **show, **{**extra, **fields})

        made = resolve(job.spec.run)(job, report, asked)
        return Manifest(
            **self._common(job),
            files=files_below(job.out, made.files),
            rows=made.rows,
            summary=made.summary,
            seconds=time.monotonic() - begun,
            stats=made.stats,
            attempts=[job.attempt],
        )

    def _common(self, job: Job) -> dict[str, Any]:
        names = self.plan.steps[job.fingerprint].inputs
        return {
            "fingerprint": job.fingerprint,
            "step": job.spec.kind,
            "version": job.spec.version,
            "identity": job.identity,
            "inputs": {r: {"name": names[r], "digest": source.digest} for r, source in job.inputs.items()},
            "made_with": {
                **self._made_with,
                "modules": self._modules[job.fingerprint],
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        }


def _asked(received: Callable[[], int]) -> int:
    """Return the signal that asks a step to save its state, or 0; SparringError where a process of Ray is gone."""
    cluster.check_alive()
    return received()


def tidy_after_kill(artifact: Artifact, manifest: Manifest, owner: str, waiting: Callable[[str], None]) -> None:
    """Remove what the maker of a finished artifact has left where it was killed before it had given its lease back.

    What may not be written keeps what it has, and so does what another run has replaced meanwhile.
    """
    if artifact.lease.exists():
        with (
            contextlib.suppress(LeaseHeld, DataError),
            Lease(artifact.lease, owner).acquire(wait=False, waiting=waiting),
        ):
            if artifact.manifest() == manifest:
                tidy(artifact, manifest)


def _add(records: Iterator[dict[str, float]] | Any) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for record in records:
        for key, value in record.items():
            total[key] = total.get(key, 0) + value
    return total


def execute_alone(plan: Plan, store: Path, run: str, scratch: Path) -> None:
    """Make what is missing of a plan whose steps no run's record names; events and logs go into `scratch`."""
    events = Events(scratch / "events.jsonl")
    try:
        Executor(
            plan=plan,
            store=store,
            run=run,
            scratch=scratch,
            events=events,
            on_done=lambda step, manifest: None,
            gpus=cluster.gpu_count(),
        ).execute()
    finally:
        events.close()
