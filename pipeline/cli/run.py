"""`sparring run`: make what is missing of a plan, then print the report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from sparring.pipeline import config
from sparring.pipeline.cli.options import Multirun, Overrides, Redo
from sparring.pipeline.cli.prepare import (
    arm_folder,
    arms_of,
    check_here,
    check_installed,
    check_places,
    check_servers,
    dealt_again_lines,
    first_of,
    memory_lines,
    plan_of,
    prepare,
    print_held,
)
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.execution.events import Events
from sparring.pipeline.execution.executor import Executor, tidy_after_kill
from sparring.pipeline.planning import estimate
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.planning.plan import Plan, State, Step, inspect
from sparring.pipeline.planning.redo import other_code, redone
from sparring.pipeline.report.data import ArmReport
from sparring.pipeline.report.terminal import print_report, stdout_console
from sparring.pipeline.runs import run_history, run_record
from sparring.pipeline.runs.stop import Watch
from sparring.pipeline.sources import Sources
from sparring.pipeline.store.files import existing, make_folder
from sparring.pipeline.store.lease import Lease, LeaseHeld
from sparring.pipeline.store.manifest import Artifact, Manifest
from sparring.stages.errors import DataError, RuleFired, SparringError


def run(
    overrides: Overrides,
    redo: Redo,
    multirun: Multirun = False,
) -> None:
    """Make what is missing of N iterations.

    What is done already, by whatever run of this store, is not done again. The report is printed at the end.

    Example: sparring run iterations=3 run.name=myrun experiment=sppo
    """
    begun = time.monotonic()
    arms = arms_of(overrides, multirun)
    plan = plan_of(arms)
    first = first_of(plan)
    store, runs = Path(first.paths.store), Path(first.paths.runs)
    check_places(plan)
    again = redone(plan, redo)
    states = inspect(plan, store, again)
    todo = any(state.kind != "hit" for state in states.values())
    if todo:
        check_installed(plan)
        check_here(plan, states)
        memory_lines(plan, states, estimate.Estimate(plan, []).weights)
        check_servers(plan, states)
        _check_disk(plan, states, store)
    make_folder("paths.store", store)
    make_folder("paths.runs", runs)
    with ExitStack() as leases:
        for arm in arms:
            leases.enter_context(_run_lease(arm_folder(plan, arm)))
        if todo:  # first: what stops here leaves the run as it was
            plan = prepare(plan, arms)
            _check_disk(plan, states, store)
        for arm, overrides in arms.items():
            _begin(plan, arm, overrides)
        if not todo:
            _link_cached(plan, store, states)
            if differs := other_code(plan, states):
                print(differs)
            print(f"nothing to do: all {len(states)} steps are hits ({time.monotonic() - begun:.1f} s)")
        else:
            _execute(plan, store, runs / first.run.name, again)
    for history in run_history.recorded(runs, first.run.name):
        if history.arm in arms:
            print_report(ArmReport.of(history), stdout_console())
    if hint := _onward(plan, store):
        print(hint)


ENOUGH = 3
"""Iterations on the starter prompts: one alone changes little."""


def _onward(plan: Plan, store: Path) -> str:
    """Return how long more iterations on the starter prompts would take, '' after enough of them."""
    first = first_of(plan)
    if first.prompts.source != "starter" or first.iterations >= ENOUGH:
        return ""
    configs = {arm: replace(one, iterations=ENOUGH) for arm, one in plan.configs.items()}
    longer = build(configs, Sources(plan.pins))
    more = estimate.Estimate(longer, estimate.manifests(store)).total(inspect(longer, store))
    return (
        f"Few iterations on few prompts change little: iterations={ENOUGH} (make iter N={ENOUGH}) goes on from here, "
        f"about {more.seconds / 60:.0f} minutes."
    )


def _run_lease(folder: Path) -> Lease:
    try:
        return Lease(folder / ".lease.json", f"run {folder.name}").acquire(
            wait=False, waiting=partial(print_held, folder)
        )
    except LeaseHeld as error:
        raise LeaseHeld(
            f"{folder} is already being driven by {error}. Wait for it, stop it, or choose another run.name."
        ) from None


def _begin(plan: Plan, arm: str, overrides: Sequence[str]) -> None:
    planned = {(use.iteration, use.label): step.fingerprint for use, step in plan.arm(arm)}
    resolved = plan.configs[arm]
    folder, entered = arm_folder(plan, arm), [entry for entry in plan.entries if entry.arm == arm]
    planned |= {(1, entry.label): entry.manifest.fingerprint for entry in entered}
    run_record.begin(folder, planned, config.render(resolved), overrides, resolved.paths.store, plan.pins)
    for entry in entered:
        run_record.note(folder, Path(resolved.paths.store), (1, entry.label), entry.manifest.name, entry.manifest)


def _check_disk(plan: Plan, states: dict[str, State], store: Path) -> None:
    need = estimate.Estimate(plan, []).total(states).peak_bytes
    free = shutil.disk_usage(existing(store)).free
    if free < need:
        raise DataError(
            f"{store}: {free / 2**30:.1f} GiB are free, this plan needs about {need / 2**30:.1f} GiB at its peak. "
            "Free space, or set paths.store to another disk."
        )


def _execute(plan: Plan, store: Path, folder: Path, redo: frozenset[str]) -> None:
    events = Events(folder / "events.jsonl")
    states = inspect(plan, store, redo)
    todo = sum(state.kind != "hit" for state in states.values())
    text = f"{folder}: {len(plan.steps)} steps, {todo} to do; events in {folder / 'events.jsonl'}"
    events("message", text=text)
    for line in dealt_again_lines(plan, states):
        events("message", text=line)
    expected = estimate.Estimate(plan, estimate.manifests(store), ray_cluster.gpus_by_machine())
    missing = [step for name, step in plan.steps.items() if states[name].kind != "hit"]
    events("planned", seconds={step.name: round(expected.cost(step).seconds, 1) for step in missing})
    if differs := other_code(plan, states):
        events("message", text=str(differs))
    watch = Watch(plan, folder, store, events.message)

    def done(step: Step, manifest: Manifest) -> None:
        _link_step(plan, store, step, manifest)
        watch.check(step)

    try:
        Executor(
            plan=plan,
            store=store,
            run=folder.name,
            scratch=folder / "logs",
            events=events,
            on_done=done,
            gpus=ray_cluster.gpu_count(),
            redo=redo,
            wanted=watch.wanted,
        ).execute()
        watch.end()
    except (RuleFired, KeyboardInterrupt) as stop:
        events("stopped", text=str(stop))
        raise
    except SparringError as error:
        events("failed", text=str(error))
        raise
    finally:
        events.close()


def _link_step(plan: Plan, store: Path, step: Step, manifest: Manifest) -> None:
    for use in step.uses:
        run_record.note(arm_folder(plan, use.arm), store, (use.iteration, use.label), step.name, manifest)


def _link_cached(plan: Plan, store: Path, states: dict[str, State]) -> None:
    """Link steps that are all done; remove what a killed process left beside them."""
    for name, step in plan.steps.items():
        manifest = states[name].manifest
        assert manifest is not None
        artifact = Artifact(store, step.spec.kind, name)
        tidy_after_kill(artifact, manifest, "sparring", partial(print_held, artifact.path))
        _link_step(plan, store, step, manifest)
