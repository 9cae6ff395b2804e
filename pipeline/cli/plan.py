"""`sparring plan`: the steps, what the store says of each, and what the others will cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from rich.table import Table
from rich.text import Text

from sparring.pipeline import config
from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import Multirun, Overrides, Redo
from sparring.pipeline.cli.prepare import (
    arms_of,
    check_here,
    check_places,
    dealt_again_lines,
    first_of,
    memory_lines,
    plan_of,
)
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.planning import estimate
from sparring.pipeline.planning.plan import Plan, State, Step, explain, inspect
from sparring.pipeline.planning.rates import ASSUMPTIONS, ESTIMATED, Rate
from sparring.pipeline.planning.redo import other_code, redone
from sparring.pipeline.report.terminal import stdout_console
from sparring.pipeline.store.manifest import Manifest
from sparring.pipeline.store.remote import opened
from sparring.stages.errors import ConfigError
from sparring.stages.plain import printable


def plan(
    overrides: Overrides,
    redo: Redo,
    multirun: Multirun = False,
    why: Annotated[bool, options.flag("--why", "say how a step differs from the nearest artifact")] = False,
    resolved: Annotated[bool, options.flag("--config", "print the resolved configuration instead")] = False,
) -> None:
    """Show the steps and their cost.

    Example: sparring plan -m experiment=sppo,s_sppo --why
    """
    arms = arms_of(overrides, multirun)
    if resolved:
        for arm in arms.values():
            print(config.render(config.load(arm, ray_cluster.gpus_by_machine())))
        return
    plan = plan_of(arms, assume=True)
    check_places(plan)
    print_plan(plan, why, redone(plan, redo))


LEAST_MINUTES = 0.05
"""A kind of step that takes less has no row of minutes."""
FEW, MANY = 5, 20
"""Iterations whose every policy met, and whose every step, has a row of its own."""


def print_plan(plan: Plan, why: bool, redo: frozenset[str] = frozenset(), to_run: bool = True) -> None:
    """Print a plan; to_run: refuse what can never run here, else say so."""
    first = first_of(plan)
    store = opened(first.paths.store)
    states, known = inspect(plan, store, redo), estimate.manifests(store)
    expected = estimate.Estimate(plan, known, ray_cluster.gpus_by_machine() if to_run else ())
    console = stdout_console()
    console.print(_table(plan, states, expected, known if why else None))
    for line in dealt_again_lines(plan, states):
        console.print(line, markup=False)
    total = expected.total(states)
    todo = sum(state.kind != "hit" for state in states.values())
    console.print(
        f"{len(states)} steps, {todo} to do: about {total.tokens:,.0f} tokens, {total.seconds / 60:.1f} minutes, "
        f"{total.peak_bytes / 2**30:.1f} GiB of disk at the peak ({total.kept_bytes / 2**30:.1f} GiB kept)"
    )
    if todo and to_run:
        console.print(_minutes(plan, states, expected))
        for line in _rate_lines(plan, states, expected):
            console.print(line, markup=False, highlight=False)
    if todo and (price := estimate.price(first, total)):
        console.print(price, highlight=False)
    if differs := other_code(plan, states):
        print(differs)
    lines = memory_lines(plan, states, expected.weights, ray_cluster.known_machines() if to_run else ())
    if wanted := [f"the {s.wanted[0]} {s.wanted[1]}" for s in plan.externals.values() if s.wanted]:
        lines.append(f"to be downloaded, and not in these figures: {', '.join(wanted)}")
    if plan.assumed:
        lines.append(f"estimated as if nothing were made of it yet, since the hub does not answer: {plan.assumed[0]}")
    for line in lines:
        console.print(line, markup=False, highlight=False)
    try:
        check_here(plan, states)
    except ConfigError as error:
        if to_run and first.hardware.name in config.DETECTED:  # profiles of whatever machine they are used on
            raise
        console.print(f"this machine cannot run it: {error}", markup=False, highlight=False)


def _table(
    plan: Plan, states: Mapping[str, State], expected: estimate.Estimate, known: Sequence[Manifest] | None
) -> Table:
    """Return the table of the steps; known: manifests of the store, of which the nearest says why a step is missing."""
    table = Table("iteration", "step", "artifact", "state", "tokens", "minutes", "why", box=None)
    for entry in plan.entries:
        origin = (
            f"imported from {entry.manifest.summary['provenance']['path']}"
            if entry.manifest.imported
            else "of another run"
        )
        table.add_row("1", entry.label, entry.manifest.name, "given", "", "", origin)
    rows: dict[tuple[int, str, str, str], list[tuple[int, Step]]] = {}
    arms = list(plan.configs)
    # By iteration: in the order in which they are made, the next iteration begins before this one is evaluated.
    for step in sorted(plan.steps.values(), key=lambda one: (arms.index(one.uses[0].arm), one.uses[0].iteration)):
        state, use = states[step.fingerprint], step.uses[0]
        reason = state.why
        if known is not None and state.kind == "miss":
            near = [m for m in known if m.step == step.spec.kind and not m.imported]
            reason = "; ".join(explain(step, near))
        crossed, _, other = use.label.partition("_vs")  # N^2 of them: those of an iteration share a row
        more = f" (+{len(step.uses) - 1} uses)" if len(step.uses) > 1 else ""
        label = f"{crossed}_vs…" if other and use.iteration > FEW else use.label + more
        key = (min(use.iteration, MANY + 1), label, state.kind, reason)
        rows.setdefault(key, []).append((use.iteration, step))
    for (_, label, kind, reason), listed in rows.items():
        iterations, steps = sorted({t for t, _ in listed}), [step for _, step in listed]
        costs = [expected.cost(step) for step in steps] if kind != "hit" else []
        tokens = sum(cost.tokens for cost in costs)
        table.add_row(
            "-".join(map(str, dict.fromkeys((iterations[0], iterations[-1])))),
            label,
            steps[0].name if len(steps) == 1 else f"{len(steps)} of them",
            kind,
            f"{tokens:,.0f}" if tokens else "",
            f"{sum(cost.seconds for cost in costs) / 60:.1f}" if costs else "",
            Text(printable(reason)),
        )
    return table


def _minutes(plan: Plan, states: Mapping[str, State], expected: estimate.Estimate) -> Table:
    """Return the minutes of what is to do, by kind of step and iteration; after FEW iterations in the sum alone."""
    minutes: dict[str, dict[int, float]] = {}
    for name, step in plan.steps.items():
        for kind in (step.spec.kind, "all") if states[name].kind != "hit" else ():
            by, t = minutes.setdefault(kind, {}), step.uses[0].iteration
            by[t] = by.get(t, 0.0) + expected.cost(step).seconds / 60
    minutes["all"] = minutes.pop("all")
    shown = [t for t in sorted(minutes["all"]) if t <= FEW]
    table = Table("minutes", *(f"iteration {t}" for t in shown), "all", box=None)
    for kind, by in minutes.items():
        if sum(by.values()) >= LEAST_MINUTES:
            table.add_row(kind, *(f"{by.get(t, 0.0):.1f}" for t in shown), f"{sum(by.values()):.1f}")
    return table


def _rate_lines(plan: Plan, states: Mapping[str, State], expected: estimate.Estimate) -> list[str]:
    """Return a line for the rate of each kind of step, with how it is known; then what estimated ones assume."""
    by_kind: dict[str, tuple[Step, Rate]] = {}
    for name, step in plan.steps.items():
        if states[name].kind != "hit" and (rate := expected.cost(step).rate):
            by_kind.setdefault(step.spec.kind, (step, rate))
    lines = [
        f"{kind}: {rate.per_s:,.0f} {rate.unit}/s a {'GPU' if step.workers.gpus else 'worker'} ({rate.known})"
        for kind, (step, rate) in by_kind.items()
    ]
    if any(rate.known.startswith(ESTIMATED) for _, rate in by_kind.values()):
        lines.append(f"Estimated rates, which no GPU has shown, assume: {'; '.join(ASSUMPTIONS)}.")
    return lines
