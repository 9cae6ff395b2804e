"""What commands do before they make anything: arms, their plan, what is refused, what is fetched."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from sparring.pipeline import config
from sparring.pipeline.config.model import Config, judges_of
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.planning.placement import check_placement, this_machine
from sparring.pipeline.planning.plan import Plan, State
from sparring.pipeline.runs import run_history, run_record
from sparring.pipeline.sources import Sources, check_policy, fetch, hub, judges
from sparring.pipeline.sources.prompt_count import dealt_again
from sparring.pipeline.store.files import check_folder, existing
from sparring.stages import digests, model_folder
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.plain import printable
from sparring.stages.sample import embedded


def arms_of(overrides: Sequence[str], multirun: bool) -> dict[str, list[str]]:
    """Return arm -> overrides; the arm of a single run is ''."""
    chosen = config.detect_hardware(overrides, ray_cluster.gpu_count())
    return dict(config.expand(chosen)) if multirun else {"": list(chosen)}


def plan_of(arms: dict[str, list[str]], assume: bool = False, pins: Mapping[str, str] | None = None) -> Plan:
    """Return the one plan of all arms; with `assume` one to look at, even where the hub does not answer.

    pins: what revisions of the hub are already resolved to, beside those that the run wrote down.
    """
    configs = {arm: config.load(overrides) for arm, overrides in arms.items()}
    for key in ("run", "paths"):
        if len({str(getattr(c, key)) for c in configs.values()}) > 1:
            raise ConfigError(f"{key} must be the same for all arms of a multirun.")
    sources = Sources({**pins_of(next(iter(configs.values()))), **(pins or {})}, assume)
    for c in configs.values():
        check_models(c, sources)
    return replace(build(configs, sources), pins=sources.hub.pins, assumed=sources.hub.assumed)


def check_models(chosen: Config, sources: Sources) -> None:
    """Refuse a policy, an encoder or a judge that is here and cannot be used as configured."""
    check_policy(chosen, sources.policy(chosen.policy))
    encoder = sources.encoder(chosen.encoder)
    if chosen.encoder.source != "embedded" and encoder.files:
        model_folder.check_loaded(encoder.root)
    for key, judge in (("oracle", chosen.oracle), ("judge", chosen.judge)):
        judges.check_folders(key, judge, sources)


def check_places(plan: Plan) -> None:
    """ConfigError where a folder cannot be written that a run of the plan writes into; nothing is written."""
    first = first_of(plan)
    check_folder("paths.store", Path(first.paths.store))
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
    """Return what the run wrote down of the hub's revisions when it began."""
    folder = Path(first.paths.runs) / first.run.name
    arms = [run_history.RunHistory.at(path.parent) for path in run_record.records(folder)]
    return {key: commit for arm in arms for key, commit in arm.pins.items()}


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
    elif todo:
        check_placement(todo, this_machine(), "this machine", alone=True)


def check_servers(plan: Plan, states: Mapping[str, State]) -> None:
    """ConfigError where a step to do asks servers of which none answers."""
    todo = {plan.steps[name].spec.kind for name, state in states.items() if state.kind != "hit"}
    for chosen in plan.configs.values():
        if "sample" in todo and chosen.sampler.engine == "server":
            ray_cluster.check_servers("sampler.urls", chosen.sampler.urls)
        for key, judge in (*judges_of("oracle", chosen.oracle), *judges_of("judge", chosen.judge)):
            if "score" in todo and judge.urls:
                ray_cluster.check_servers(f"{key}.urls", judge.urls)


def stdout_console() -> Console:
    """Return what tables are printed to: as wide as COLUMNS or the terminal, 160 where it is a pipe or a file."""
    columns = os.environ.get("COLUMNS", "")
    wide = int(columns) if columns.isdecimal() else 0
    return Console(width=wide or (shutil.get_terminal_size().columns if sys.stdout.isatty() else 160))


def print_held(folder: Path, holder: str) -> None:
    print(printable(f"{folder} is held by {holder}"), file=sys.stderr)


def prepare(plan: Plan, arms: dict[str, list[str]]) -> Plan:
    """Have the policy and the prompts here before anything starts; what was fetched is looked at in a new plan."""
    return plan_of(arms, pins=plan.pins) if fetch(plan.configs.values(), plan.externals.values()) else plan


def dealt_again_lines(plan: Plan, states: Mapping[str, State]) -> list[str]:
    """Return a line for every arm that plays on a prompt more than once."""
    lines = []
    for arm, chosen in plan.configs.items():
        made = (states[step.fingerprint].manifest for use, step in plan.arm(arm) if use.label == "prompts")
        counts = [manifest.summary["train"] for manifest in made if manifest and "train" in manifest.summary]
        lines.append(dealt_again(chosen, counts[0] if counts else plan.train_prompts.get(arm)))
    return list(dict.fromkeys(filter(None, lines)))
