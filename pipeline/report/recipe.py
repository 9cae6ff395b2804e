"""Where a run is not the published recipe whose name it was begun with: `experiment=sppo_mistral_7b policy=...`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sparring.pipeline import config
from sparring.pipeline.config.model import Config
from sparring.pipeline.runs.run_history import RunHistory
from sparring.stages import fields
from sparring.stages.errors import ConfigError
from sparring.stages.fields import LOCATION, RUNTIME, unhashed

GROUPS = (
    "policy", "prompts", "sampler", "oracle", "encoder", "gate", "objective", "repulsion", "calibration", "trainer",
    "win_rate", "selection", "entry",
)  # fmt: skip
"""What defines a recipe: how the policy plays, who judges, how it is trained."""
NO_RECIPE = (
    "policy.dtype", "prompts.heldout", "sampler.engine", "sampler.engine_args", "sampler.logprobs",
    "sampler.reproducible", "sampler.shard_rows", "trainer.adapter_lr", "trainer.min_steps",
)  # fmt: skip
"""Keys of these groups that do not define it, beside those of `is_local`."""
OPEN = re.compile(r"\.(members|weights|engine_args|deepspeed)\.")
"""In what holds any keys; elsewhere a key that the preset lacks is of an earlier version."""
NAMING = ("name", "kind", "source")
"""Keys that say which one a group is: where they differ, its other keys say nothing."""


@cache
def is_local(key: str) -> bool:
    """Return whether a setting says only where a run works, or how fast: RUNTIME, or the path of a LOCATION."""
    rule = unhashed(Config, key)
    return rule is RUNTIME or (rule is LOCATION and key.endswith(".path"))


def settings(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key -> value of what defines the recipe of a configuration."""
    chosen = {group: plain[group] for group in GROUPS if group in plain}
    if plain.get("gate", {}).get("name") == "off":
        chosen.pop("encoder", None)  # it has no say
        chosen["gate"] = {"name": "off"}
    if plain.get("repulsion", {}).get("name") == "off":
        chosen["repulsion"] = {"name": "off"}
    outside = tuple(f"{key}." for key in NO_RECIPE)
    leaves = {key: value for key, value in fields.dotted(chosen).items() if not f"{key}.".startswith(outside)}
    recipe = {key: value for key, value in leaves.items() if key == "policy.name" or not is_local(key)}
    return {key: value for key, value in recipe.items() if not (value == {} and OPEN.search(f"{key}."))}  # nothing set


def of_preset(name: str) -> dict[str, Any]:
    """Return what defines the recipe of an experiment of conf/."""
    plain = OmegaConf.to_container(OmegaConf.create(config.render(config.load([f"experiment={name}"]))))
    assert isinstance(plain, dict)
    return settings({str(key): value for key, value in plain.items()})


def differences(run: RunHistory) -> list[str]:
    """Return `policy.name=smollm2-135m` for all settings in which a run differs from its preset; [] without one.

    Not compared are keys that the run's configuration lacks, being of an earlier version, and the encoder of a gate
    that the recipe does not have.
    """
    overrides = [str(word).lstrip("+") for word in run.record.overrides]
    names = [word.partition("=")[2] for word in overrides if word.startswith("experiment=")]
    ours = settings(run.settings)
    try:
        theirs = of_preset(names[-1]) if names and ours else ours
    except ConfigError:  # a preset of another version
        return []
    absent, groups = object(), {key.partition(".")[0] for key in theirs}
    known = {key: value for key, value in ours.items() if key.partition(".")[0] in groups}
    listed = [key for key in known if key in theirs or OPEN.search(key)]
    changed = [key for key in listed if theirs.get(key, absent) != known[key]]
    texts = {key: str(ours[key]) for key in changed if not _named(key, changed)}
    outside = ("/", "~", ".")  # a folder of this machine
    return [f"{key}={Path(text).name if text.startswith(outside) else text}" for key, text in texts.items()]


def _named(key: str, changed: list[str]) -> bool:
    """Whether another key that changed names the group, or a group around it, that `key` is of."""
    parts = key.split(".")
    for depth in range(1, len(parts)):
        group = ".".join(parts[:depth])
        naming = [f"{group}.{leaf}" for leaf in NAMING if f"{group}.{leaf}" in changed]
        if naming and naming[0] != key:
            return True
    return False
