"""`sparring profile NAME`: measures this machine's rates by the real steps of a small iteration, and writes them as
hardware/NAME.yaml, which `hardware=NAME` reads where the command is run.

The iteration is made in a store of its own under paths.runs, which is removed when the rates are written. It stops
after the training; start_s is what a step takes beside its work at the measured rate, the mean of those with models.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import Overrides
from sparring.pipeline.cli.prepare import (
    arms_of,
    check_here,
    check_installed,
    check_places,
    check_servers,
    first_of,
    memory_lines,
    plan_of,
    prepare,
)
from sparring.pipeline.config.groups import CONF, OF_USERS
from sparring.pipeline.config.model import Config
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.execution.events import Events
from sparring.pipeline.execution.executor import Executor
from sparring.pipeline.planning.estimate import EMBEDDED, Estimate
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.planning.plan import Plan, Step, inspect
from sparring.pipeline.planning.rates import workers_of
from sparring.pipeline.sources import Sources
from sparring.pipeline.store.files import make_folder, write_text
from sparring.pipeline.store.manifest import Manifest
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.hardware import HardwareConfig

EXPECTED = {
    "sample": ("sample_tokens_per_s", "tokens"),
    "score": ("score_duels_per_s", "duels"),
    "embed": ("embed_responses_per_s", "responses"),
    "reference": ("reference_tokens_per_s", "tokens"),
    "train": ("train_tokens_per_s", "tokens"),
}
"""Label of a step -> its field of `hardware.expect`, and what the step's manifest counts."""
LIGHT = ("prompts", "pairs", "calibrate")
"""Labels of the steps between them."""
LEAST_PROMPTS = 16
LEAST_STEPS = 4
"""Optimizer steps, of which the first is not timed."""
PER_ENGINE = 256
"""Prompts for each GPU's engine: K responses of each fill its batch."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one step."""

    per_s: float
    """Units a second of all workers, when their models are loaded."""
    start_s: float
    """Seconds of the step beside its units at this rate."""


def profile(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the profile: hardware/NAME.yaml is written")],
    overrides: Overrides,
    prompts: Annotated[
        int | None, options.value("N", "prompts to play on (default: as many as the workers need)")
    ] = None,
) -> None:
    """Measure the rates of this machine in minutes, and write them as a hardware profile.

    The overrides are those of the run: its policy, its judges, its hardware.

    Example: sparring profile mine policy=qwen2.5-0.5b
    """
    target = Path(OF_USERS) / f"{name}.yaml"
    if not name.isidentifier() or (CONF / target).exists():
        raise ConfigError(f"profile {name}: choose another name, of letters, digits and _, that no profile here has.")
    make_folder("profile", target.parent)
    arms = arms_of(overrides, multirun=False)
    plan = plan_of(arms)
    states = inspect(plan, Path("nowhere"))
    check_places(plan)
    check_installed(plan)
    check_here(plan, states)
    memory_lines(plan, states, Estimate(plan, []).weights, ray_cluster.known_machines())
    check_servers(plan, states)
    plan = prepare(plan, arms)
    chosen = first_of(plan)
    small = build({"": smaller(chosen, prompts or prompts_for(chosen))}, Sources(plan.pins))
    folder = Path(chosen.paths.runs) / f"profile-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    found = measure(small, folder)
    gpus = ray_cluster.gpus_by_machine()
    write_text(target, text_of(name, first_of(small).hardware, small, found, gpus))
    shutil.rmtree(folder)
    print(f"wrote {target}; `hardware={name}` plans with it:")
    for label, (key, unit) in EXPECTED.items():
        if label in found:
            print(
                f"  {key}: {found[label].per_s:,.1f} {unit}/s over all workers, {found[label].start_s:.1f} s beside it"
            )


def prompts_for(chosen: Config) -> int:
    """Return how many prompts keep all workers of a configuration at work, for at least LEAST_STEPS optimizer steps."""
    hardware = chosen.hardware
    engines = PER_ENGINE * (hardware.engines or 1) if hardware.engine_gpus else LEAST_PROMPTS
    return max(engines, LEAST_PROMPTS, LEAST_STEPS * chosen.trainer.global_batch)


def smaller(chosen: Config, prompts: int) -> Config:
    """Return the configuration with one iteration on so many prompts."""
    slices = chosen.prompts.slices
    few = replace(chosen.prompts, limit=prompts * (slices or 1), per_iteration=None if slices else prompts)
    return replace(chosen, iterations=1, prompts=few, trainer=replace(chosen.trainer, min_steps=1))


def measure(plan: Plan, folder: Path) -> dict[str, Measured]:
    """Make the steps of one iteration up to its training in a store of their own; return label -> what was measured."""
    made: dict[str, Manifest] = {}

    def done(step: Step, manifest: Manifest) -> None:
        made[step.uses[0].label] = manifest

    events = Events(folder / "events.jsonl")
    try:
        Executor(
            plan=plan,
            store=folder / "store",
            run=folder.name,
            scratch=folder / "logs",
            events=events,
            on_done=done,
            gpus=ray_cluster.gpu_count(),
            wanted=lambda step: step.uses[0].label in (*EXPECTED, *LIGHT),
        ).execute()
    finally:
        events.close()
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    by_step: dict[str, list[dict[str, Any]]] = {}
    for event in map(json.loads, lines):
        by_step.setdefault(event.get("step", ""), []).append(event)
    return {
        label: measured(by_step[made[label].name], made[label].stats[unit])
        for label, (_, unit) in EXPECTED.items()
        if label in made and made[label].stats.get(unit)
    }


def measured(events: Sequence[Mapping[str, Any]], units: float) -> Measured:
    """Return the rate of a step that made so many units, from its events.

    Of shards it is over the seconds since the first models were loaded, of optimizer steps over those after the first;
    DataError where there is one.
    """
    began, ended = (next(e["time"] for e in events if e["event"] == name) for name in ("step_started", "step_done"))
    steps = [event for event in events if event["event"] == "train_step" and event.get("done")]
    if steps:
        first, last = steps[0], steps[-1]
        if first["done"] == last["done"]:
            raise DataError(f"{first['step']}: one optimizer step has no rate; play on more prompts (--prompts).")
        seconds_each = (last["time"] - first["time"]) / (last["done"] - first["done"])
        per_s = units / last["of"] / seconds_each
    else:
        per_s = units / [event for event in events if event["event"] == "shard"][-1]["busy_s"]
    return Measured(per_s=per_s, start_s=max(0.0, ended - began - units / per_s))


def text_of(name: str, hardware: HardwareConfig, plan: Plan, found: Mapping[str, Measured], gpus: Sequence[int]) -> str:
    """Return the profile as a file of the group `hardware`: rates are those of one worker, or of one GPU."""
    steps = {use.label: step for use, step in plan.arm("")}
    chosen, machine = first_of(plan), ray_cluster.hardware()
    rates = {
        key: round(found[label].per_s / workers_of(steps[label], gpus), 3)
        for label, (key, _) in EXPECTED.items()
        if label in found and not (label == "score" and chosen.oracle.kind in EMBEDDED)
    }
    date, gpu = time.strftime("%Y-%m-%d"), f"{machine['gpus']} GPUs" if machine["gpus"] else "no GPU"
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {gpu}"
    what = f"policy {chosen.policy.name}, oracle {chosen.oracle.kind}, K={chosen.sampler.k}"
    expect = {
        **asdict(hardware.expect),
        **rates,
        "parameters": Estimate(plan, []).weights[""],
        "start_s": round(sum(one.start_s for one in found.values()) / len(found), 1),
        "basis": f"measured {date} on {where}",
    }
    content = {"hardware": {**asdict(hardware), "name": name, "expect": expect}}
    head = f"# @package _global_\n# Measured by `sparring profile {name}` on {date}: {where}; {what}.\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
