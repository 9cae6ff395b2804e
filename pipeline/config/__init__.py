"""Configuration: Hydra groups in conf/, composed, checked against the model of pipeline/config/model.py; an error names
the key.

`load` makes the model of overrides, which overrides.py parses. A key that the user sets is one that the configuration
reads: one of another kind of its group is refused with the options that read it (`OnlyIf`, `ByReference`:
stages/fields.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from typing import Any, cast

from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from sparring.pipeline.config import messages, overrides
from sparring.pipeline.config.arms import DETECTED, detect_hardware, expand
from sparring.pipeline.config.checks import cross_field_errors
from sparring.pipeline.config.groups import (
    SHARED,
    choices_of,
    compose_by_hydra,
    group_names,
    hydra_word,
    is_choice,
    options_of,
    search_words,
)
from sparring.pipeline.config.model import Config
from sparring.stages import fields
from sparring.stages.errors import ConfigError

__all__ = ["DETECTED", "Config", "detect_hardware", "expand", "load"]
INHERITED = ("stop", "dtype", "tensor_parallel")
"""Of a preset's policy: what policy=folder beside the preset keeps, where it is not set."""


def load(words: Sequence[str], gpus: Sequence[int] = ()) -> Config:
    """Compose the groups with Hydra overrides; ConfigError names the wrong key, who reads it, and the nearest one.

    gpus: of each machine that the run may use; what hardware leaves open is filled by them.
    """
    parsed = overrides.parse(words)
    composed = compose(parsed)
    values = {one.key_or_group: one.value() for one in parsed}
    if values.get("policy") == "folder" and "experiment" in values:  # sampled as the preset's policy is
        preset = compose([one for one in parsed if one.key_or_group.partition(".")[0] != "policy"])
        for key in INHERITED:
            if f"policy.{key}" not in values:
                composed.policy[key] = preset.policy[key]
    _check_added(parsed)
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError(f"{missing[0]} is not set; add {missing[0]}=... to the command.")
        plain: Any = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(messages.first_line(error)) from None
    try:
        config: Config = fields.validator(Config).validate_python(plain)
    except ValidationError as error:
        raise ConfigError(messages.of_type_error(error, parsed)) from None
    _check_read(config, plain, parsed)
    config = replace(config, hardware=config.hardware.on(gpus, config.trainer.global_batch))
    for message in cross_field_errors(config):
        raise ConfigError(message)
    _check_effect(config, composed, parsed)
    return config


def render(config: Config) -> str:
    """Return the resolved configuration as YAML: all keys that are read."""
    plain = asdict(config)
    for key, _ in fields.unread(config, config):
        *above, last = key.split(".")
        group, owner = plain, cast(Any, config)
        for part in above:
            group = group[part]
            owner = owner[part] if isinstance(owner, dict) else getattr(owner, part, {})
        if fields.has_default(owner, last):
            del group[last]
    return OmegaConf.to_yaml(OmegaConf.create(plain))


def compose(parsed: Sequence[Override]) -> DictConfig:
    """Return what Hydra composes: the groups once for all arms, then the values; ConfigError where it cannot."""
    for one in parsed:
        if is_choice(one) and not (one.is_delete() or one.is_sweep_override()):
            _check_option(one)
    search = search_words(parsed)
    choices = (*(hydra_word(one) for one in parsed if is_choice(one)), *search)
    settings = [one for one in parsed if not is_choice(one)]
    try:
        if all(one.type == OverrideType.CHANGE and not (one.package or one.is_sweep_override()) for one in settings):
            with suppress(OmegaConfBaseException):  # Hydra says what is wrong
                composed = copy.deepcopy(_compose_groups(choices))
                for one in settings:
                    OmegaConf.update(composed, one.key_or_group, one.value(), merge=True)
                return composed
        return compose_by_hydra([*(hydra_word(one) for one in parsed), *search])
    except Exception as error:  # Hydra raises many kinds for what a user may write
        raise ConfigError(messages.of_hydra(error, parsed)) from None


@cache
def _compose_groups(words: tuple[str, ...]) -> DictConfig:
    return compose_by_hydra(words)


def _check_option(one: Override) -> None:
    """ConfigError where an override of a group names none of its options."""
    if one.package and SHARED.get(one.package) == one.key_or_group:
        names = options_of(one.package)
        raise ConfigError(f"{one.input_line}: write {one.package}=NAME, and name one of {', '.join(names)}.")
    value, names = one.value(), choices_of(one.key_or_group)
    name = value.text if isinstance(value, QuotedString) else value
    if not isinstance(name, str):
        raise ConfigError(f"{one.input_line}: name one of {', '.join(names)}.")
    if name not in names:
        proposal = messages.nearest(name, names)
        raise ConfigError(f"{one.key_or_group}={name} is not known.{proposal} There are: {', '.join(names)}.")
    if (one.is_add() or one.is_force_add()) and not one.package:
        raise ConfigError(f"{one.input_line}: the group is there already; write {one.key_or_group}={name}.")


def _check_added(parsed: Sequence[Override]) -> None:
    """ConfigError where `+key=` adds a key that only other options of its group read; Hydra would take any key."""
    added = [one for one in parsed if (one.is_add() or one.is_force_add()) and not is_choice(one)]
    if not added:
        return
    composed: Any = OmegaConf.to_container(compose([one for one in parsed if one not in added]))
    known = fields.dotted(composed)
    for key in overrides.keys(added, group_names()):
        if key not in known and not messages.MEMBER.fullmatch(key) and messages.options_with(key)[1]:
            raise ConfigError(messages.of_unread_key(key, parsed))


def _check_read(config: Config, plain: dict[str, Any], parsed: Sequence[Override]) -> None:
    """ConfigError where the model lacks a key that was composed, but for what a preset leaves behind."""
    user_keys, settings = overrides.keys(parsed, group_names()), fields.dotted(plain)
    for key in sorted({*settings} - {*fields.dotted(asdict(config))}):
        group = key.rpartition(".")[0]
        kinds = [f"{group}.{name}" for name in fields.discriminators(fields.at(Config, group))]
        kind = next((one for one in kinds if one in user_keys), None)
        if key in user_keys and kind:
            raise ConfigError(f"{key} is not read with {kind}={settings[kind]}; leave one of the two out.")
        if key in user_keys or not fields.at(Config, key):
            raise ConfigError(messages.of_unread_key(key, parsed))


def _check_effect(config: Config, composed: DictConfig, parsed: Sequence[Override]) -> None:
    """ConfigError where the user sets a key that nothing reads in this configuration."""
    user_keys = overrides.keys(parsed, group_names())
    without_effect = dict(fields.unread(config, config))
    for key, where in fields.by_reference(Config):
        if key in user_keys and f"${{{key}}}" not in OmegaConf.to_yaml(composed):
            without_effect[key] = where
    for key, where in without_effect.items():
        if key in user_keys:
            raise ConfigError(f"{key} has no effect here: it is read only {where}. Leave it out, or change that.")
