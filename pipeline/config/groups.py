"""The groups of conf/: their options, the keys that an option sets, and what a choice of options composes to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from sparring import conf
from sparring.stages import fields
from sparring.stages.annotate import oracles

CONF = Path(conf.__file__).parent
SHARED = {"judge": "oracle"}
"""Group -> the group whose files are its options: the second judge is one of the oracles."""
OF_USERS = "hardware"
"""The group that has options of the user's too: files of a folder of this name where the command is run."""


@cache
def group_names() -> tuple[str, ...]:
    """Return the groups of the configuration."""
    folders = {path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("__")}
    return tuple(sorted(folders | SHARED.keys()))


def choices_of(group: str) -> list[str]:
    """Return the options of a group, those of the user's own files too."""
    own = {path.stem for path in Path(OF_USERS).glob("*.yaml")} if group == OF_USERS else set()
    return sorted({*own, *options_of(group)})


@cache
def options_of(group: str) -> list[str]:
    """Return the options of a group; those of `judge` are the oracles that are not made of others."""
    options = sorted(path.stem for path in (CONF / SHARED.get(group, group)).glob("*.yaml"))
    if group != "judge":
        return options
    return [one for one in options if not oracles.options_class(option_keys("oracle", one)["oracle.kind"]).has_members]


@cache
def option_keys(group: str, option: str, place: str | None = None) -> dict[str, Any]:
    """Return dotted key -> value of what an option of a group sets, and the options that it is made of.

    place: the key under which they are, where it is not the one that the option's file states.
    """
    path = _file(SHARED.get(group, group), option)
    package = re.search(r"^# @package (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    if place is None:
        place = group.replace("/", ".") if package is None else package[1].replace("_global_", "")
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    prefix = f"{place}." if place else ""
    own = fields.dotted({name: value for name, value in content.items() if name != "defaults"})
    keys = {f"{prefix}{key}": value for key, value in own.items()}
    for line in content.get("defaults", []):
        for name, one in line.items() if isinstance(line, dict) and not any("override" in n for n in line) else ():
            other, _, at = name.lstrip("/").partition("@")
            keys |= option_keys(other, one, place if at == "_here_" else f"{prefix}{at or other}")
    return keys


def _file(group: str, option: str) -> Path:
    packaged = CONF / group / f"{option}.yaml"
    return packaged if group != OF_USERS or packaged.exists() else Path(OF_USERS) / packaged.name


def is_choice(override: Override) -> bool:
    """Whether an override chooses an option of a group."""
    return override.key_or_group in group_names()


def hydra_word(override: Override) -> str:
    """Return an override as Hydra reads it: `judge=mini` is its `oracle@judge=mini`."""
    word, group = override.input_line or "", override.key_or_group
    if override.package or group not in SHARED:
        return word
    return word.replace(group, f"{SHARED[group]}@{group}", 1)


def search_words(parsed: Sequence[Override]) -> list[str]:
    """Return what tells Hydra where an option of the user's is, if one is chosen; the package's own come first."""
    chosen = [one.value() for one in parsed if one.key_or_group == OF_USERS and not one.is_sweep_override()]
    own = [one for one in chosen if isinstance(one, str) and one not in options_of(OF_USERS)]
    folder = str(Path.cwd()).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.searchpath=['file://{folder}']"] if own else []


def compose_by_hydra(words: Sequence[str], with_hydra: bool = False) -> DictConfig:
    """Return what Hydra composes; with_hydra: its own node, too, which knows the option that each group has."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides=list(words), return_hydra_config=with_hydra)


def known_keys(parsed: Sequence[Override] = ()) -> list[str]:
    """Return every key and every group of the configuration, dotted, with the options that overrides choose."""
    composed: Any = OmegaConf.to_container(compose_by_hydra(_choices(parsed)))
    return sorted({*fields.dotted(composed), *group_names()})


def chosen_options(parsed: Sequence[Override]) -> dict[str, Any]:
    """Return group -> the option that it has with these overrides."""
    chosen = dict(compose_by_hydra(_choices(parsed), with_hydra=True).hydra.runtime.choices)
    return chosen | {group: chosen.get(f"{shared}@{group}") for group, shared in SHARED.items()}


def _choices(parsed: Sequence[Override]) -> list[str]:
    """Return the overrides that choose an option that exists."""
    known = [
        one for one in parsed if is_choice(one) and not one.package and one.value() in choices_of(one.key_or_group)
    ]
    return [*map(hydra_word, known), *search_words(known)]
