"""What commands do before they make anything: load arms, plan, check, download."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from sparring.pipeline import config
from sparring.pipeline.config.model import Config, judges_of
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.planning import memory
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.planning.placement import check_placement
from sparring.pipeline.planning.plan import Plan, State
from sparring.pipeline.planning.prompt_count import dealt_again
from sparring.pipeline.runs import run_history, run_record
from sparring.pipeline.sources import Sources, check_policy, fetch, hub, judges
from sparring.pipeline.store.files import check_folder, existing
from sparring.pipeline.store.remote import folder_of, is_bucket
from sparring.stages import digests, model_folder
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.plain import printable
from sparring.stages.sample import embedded

CONNECT_S = 5.0
"""Seconds that a server has to accept a connection."""


def arms_of(overrides: Sequence[str], multirun: bool) -> dict[str, list[str]]:
    """Return arm -> overrides; the arm of a single run is ''."""
    chosen = config.detect_hardware(overrides, sum(ray_cluster.gpus_by_machine()))
    return dict(config.expand(chosen)) if multirun else {"": list(chosen)}


def load_config(overrides: Sequence[str]) -> Config:
    """Return the configuration of a single run; hardware=auto becomes that of this machine, or of the cluster."""
    gpus = ray_cluster.gpus_by_machine()
    return config.load(config.detect_hardware(overrides, sum(gpus)), gpus)


def plan_of(
    arms: dict[str, list[str]],
    assume: bool = False,
    pins: Mapping[str, str] | None = None,
    gpus: Sequence[int] | None = None,
) -> Plan:
    """Return the one plan of all arms; with `assume` one to look at, even where the hub does not answer.

    ConfigError or DataError where a policy, an encoder or a judge cannot be used as configured. pins: commits of the
    hub's revisions that are already known, beside those that the run recorded. gpus: of each machine; None: those of
    the cluster that is joined, which is asked, or of this machine.
    """
    gpus = ray_cluster.gpus_by_machine() if gpus is None else gpus
    configs = {arm: config.load(overrides, gpus) for arm, overrides in arms.items()}
    for key in ("run", "paths"):
        if len({str(getattr(c, key)) for c in configs.values()}) > 1:
            raise ConfigError(f"{key} must be the same for all arms of a multirun.")
    sources = Sources({**pins_of(next(iter(configs.values()))), **(pins or {})}, assume)
    for chosen in configs.values():  # models that are here and cannot be used as configured
        check_policy(chosen, sources.policy(chosen.policy))
        encoder = sources.encoder(chosen.encoder)
        if chosen.encoder.source != "embedded" and encoder.files:
            model_folder.check_loaded(encoder.root)
        for key, judge in (("oracle", chosen.oracle), ("judge", chosen.judge)):
            judges.check_folders(key, judge, sources)
    return replace(build(configs, sources), pins=sources.hub.pins, assumed=sources.hub.assumed)


def check_places(plan: Plan) -> None:
    """ConfigError where a folder cannot be written that a run of the plan writes into; nothing is written."""
    first = first_of(plan)
    check_folder("paths.store", folder_of(first.paths.store))
    check_folder("paths.runs", Path(first.paths.runs))
    for arm in plan.configs:
        check_folder("run.name", arm_folder(plan, arm))
    cache = digests.cache_folder()
    needed = any(c.policy.source == "embedded" for c in plan.configs.values()) and not embedded.is_prepared()
    if needed or not existing(cache).is_dir():  # one that may only be read is enough otherwise
        check_folder("SPARRING_CACHE", cache)
    if any(source.wanted for source in plan.externals.values()) and find_spec("huggingface_hub"):
        hub.check_cache()


def pins_of(first: Config) -> dict[str, str]:
    """Return the commits of the hub's revisions that the run recorded when it began."""
    folder = Path(first.paths.runs) / first.run.name
    arms = [run_history.RunHistory.at(path.parent) for path in run_record.records(folder)]
    return {key: commit for arm in arms for key, commit in arm.record.pins.items()}


def first_of(plan: Plan) -> Config:
    return next(iter(plan.configs.values()))


def arm_folder(plan: Plan, arm: str) -> Path:
    first = first_of(plan)
    return Path(first.paths.runs) / first.run.name / arm


def check_installed(plan: Plan) -> None:
    """DataError where packages are missing that a run needs: the base dependencies are enough to plan and to report."""
    missing = [name for name in ("ray", "torch", "transformers") if find_spec(name) is None]
    if missing:
        raise DataError(
            f"{', '.join(missing)}: not installed, and a run needs them; `make setup` installs all in a checkout, "
            "else pip install 'sparring[cpu]' (or [cuda])."
        )
    if any(
        source.role == "encoder" and source.root == Path() and not source.wanted for source in plan.externals.values()
    ):
        embedded.encoder_folder()  # says that its package is not installed


def check_here(plan: Plan, states: dict[str, State]) -> None:
    """ConfigError where what is to do can never run: no cluster answers, or this machine cannot hold its workers."""
    todo = [step for name, step in plan.steps.items() if states[name].kind != "hit"]
    if todo and ray_cluster.joined():
        ray_cluster.check_address(os.environ["RAY_ADDRESS"])
        if is_bucket(first_of(plan).paths.store):
            where = "this machine, where the checkpoints are when the store is a bucket,"
            check_placement((s for s in todo if s.spec.run), [ray_cluster.this_machine()], where, alone=True)
    elif todo:
        if any(step.workers.gpus for step in todo) and (fault := ray_cluster.gpu_fault()):
            raise ConfigError(f"{fault}.")
        if any(chosen.hardware.dashboard for chosen in plan.configs.values()):
            ray_cluster.check_dashboard()
        check_placement(todo, [ray_cluster.this_machine()], "this machine", alone=True)


def memory_lines(
    plan: Plan, states: Mapping[str, State], weights: Mapping[str, int], nodes: Sequence[Mapping[str, float]]
) -> list[str]:
    """Return what each step that is to do holds on a GPU, and on its hosts where that is much; ConfigError where it is
    more than they have.

    weights: of each arm's policy. nodes: as known_machines; none: they are not known, and the hub is not asked either.
    """
    todo = {plan.steps[name].spec.kind: plan.steps[name] for name, state in states.items() if state.kind != "hit"}
    sizes = [node.get("GPU_GB") for node in nodes if node.get("GPU")]
    smallest = min((size for size in sizes if size), default=None) if all(sizes) else None
    lines: dict[str, str] = {}
    for arm, chosen in plan.configs.items():
        gib = chosen.hardware.gpu_gb or smallest
        model = memory.of_policy(plan, arm, weights[arm], ask_hub=bool(nodes) and not plan.assumed)
        for step, need in memory.needs_of(chosen, model).items():
            if not todo.keys() & memory.KINDS.get(step, {step}):
                continue
            if gib:
                memory.check(step, need, chosen, model, gib)
            size = f"of {gib:.0f} GiB" if gib else "whose memory is not known here: hardware.gpu_gb states it"
            least = "" if model.layers else "at least "  # of weights alone: its config.json is not to be had
            lines[f"{step} needs {least}{memory.described(need)} of each GPU, {size}"] = ""
        for step, need in memory.host_needs_of(chosen, model).items():
            kinds = todo.keys() & memory.KINDS.get(step, {step})
            for kind in sorted(kinds):
                if line := memory.check_hosts(step, need, todo[kind].workers, nodes):
                    lines[line] = ""
    return list(lines)


def check_servers(plan: Plan, states: Mapping[str, State]) -> None:
    """ConfigError where a step to do asks servers of which none answers."""
    todo = {plan.steps[name].spec.kind for name, state in states.items() if state.kind != "hit"}
    for chosen in plan.configs.values():
        if "sample" in todo and chosen.sampler.engine == "server":
            _check_answers("sampler.urls", chosen.sampler.urls)
        for key, judge in (*judges_of("oracle", chosen.oracle), *judges_of("judge", chosen.judge)):
            if "score" in todo and judge.urls:
                _check_answers(f"{key}.urls", judge.urls)


def _check_answers(key: str, urls: Iterable[str]) -> None:
    """ConfigError when none of the servers accepts a connection; key: the configuration key that names them."""
    faults = []
    for url in urls:
        place = urlsplit(url)
        try:
            port = place.port or (443 if place.scheme == "https" else 80)
            socket.create_connection((place.hostname or "", port), timeout=CONNECT_S).close()
            return
        except (OSError, ValueError) as error:
            faults.append(f"{url}: {error}")
    raise ConfigError(f"{key}: no server answers ({'; '.join(faults)}); start one, or name another.")


def print_held(folder: Path, holder: str) -> None:
    print(printable(f"{folder} is held by {holder}"), file=sys.stderr)


def prepare(plan: Plan, arms: dict[str, list[str]]) -> Plan:
    """Download what a plan needs; return the plan, made again if anything was downloaded."""
    return plan_of(arms, pins=plan.pins) if fetch(plan.configs.values(), plan.externals.values()) else plan


def dealt_again_lines(plan: Plan, states: Mapping[str, State]) -> list[str]:
    """Return a line for every arm that plays on a prompt more than once."""
    lines = []
    for arm, chosen in plan.configs.items():
        made = (states[step.fingerprint].manifest for use, step in plan.arm(arm) if use.label == "prompts")
        counts = [manifest.summary["train"] for manifest in made if manifest and "train" in manifest.summary]
        lines.append(dealt_again(chosen, counts[0] if counts else plan.train_prompts.get(arm)))
    return list(dict.fromkeys(filter(None, lines)))
