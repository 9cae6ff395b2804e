"""Configuration: Hydra groups in conf/, composed, checked against the dataclasses of pipeline/schema.py; an error names
the key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError

import conf
from pipeline.complaints import complaints
from pipeline.diagnostics.config import DiagnosticsConfig
from pipeline.errors import ConfigError, DataError
from pipeline.schema import Config

CONF = Path(conf.__file__).parent


def load(overrides: Sequence[str]) -> Config:
    """Compose the groups with Hydra overrides; ConfigError names the wrong key and the nearest right one."""
    composed = _compose(list(overrides))
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(f"{missing[0]} is not set; add {missing[0]}=... to the command.")
    plain = OmegaConf.to_container(composed, resolve=True)
    try:
        config = TypeAdapter(Config).validate_python(plain)
    except ValidationError as error:
        raise ConfigError(_type_message(error)) from None
    unknown = sorted(set(_keys(plain)) - set(_keys(asdict(config))))
    if unknown:
        raise ConfigError(_unknown(unknown[0], overrides))
    for complaint in complaints(config):
        raise ConfigError(complaint)
    return config


def expand(overrides: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return (arm name, overrides) for every combination of the sweeps in `overrides` (a=1,2 or a=range(..))."""
    choices = [_choices(override) for override in _parse(overrides)]
    arms = []
    for combination in product(*choices):
        swept = [text for text, options in zip(combination, choices, strict=True) if len(options) > 1]
        arms.append((",".join(swept).replace("/", "-") or "only", list(combination)))
    return arms


DETECTED = ("cuda", "cpu")
"""Hardware profiles of the machine at hand, with and without a GPU; others describe a machine of their own."""


def detect_hardware(overrides: Sequence[str], gpus: int) -> list[str]:
    """Return overrides with hardware=auto (or none) replaced by what the machine has."""
    kept = [o for o in overrides if o.strip() != "hardware=auto"]
    named = any(o.strip().startswith("hardware=") for o in kept)
    return kept if named else [*kept, f"hardware={DETECTED[0 if gpus else 1]}"]


def render(config: Config) -> str:
    """Return the resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def diagnostics_of(folder: Path) -> DiagnosticsConfig:
    """Return the thresholds that the run in `folder` was begun with, those of conf/ where it recorded none."""
    known, path = _group(CONF / "config.yaml", "diagnostics"), folder / "config.yaml"
    try:
        recorded = _group(path, "diagnostics")
        chosen = {**known, **{key: recorded[key] for key in known if key in recorded}}
        return TypeAdapter(DiagnosticsConfig).validate_python(chosen)
    except (ValueError, TypeError, AttributeError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({first}); the same `sparring run` again writes it.") from None


def _group(path: Path, name: str) -> dict[str, Any]:
    """Return a group as a file has it, {} where the file or the group is not there."""
    plain: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    return dict(plain.get(name, {}))


def _choices(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line or ""]
    return [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        braces = next((o for o in overrides if "{" in o and '"' not in o), "").partition("=")
        hint = f"; quote what has braces: '{braces[0]}=\"{braces[2]}\"'" if braces[2] else ""
        raise ConfigError(f"{str(error).splitlines()[0]}: write overrides as key=value{hint}.") from None


def _compose(overrides: list[str]) -> DictConfig:
    _parse(overrides)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error)
    raise ConfigError(_hydra_message(text, overrides))


def _hydra_message(text: str, overrides: Sequence[str]) -> str:
    group = re.search(r"Could not find '([\w-]+)/([^']*)'", text)
    if group:
        names = [path.stem for path in sorted((CONF / group[1]).glob("*.yaml"))]
        return f"{group[1]}={group[2]} is not known.{_nearest(group[2], names)} There are: {', '.join(names)}."
    key = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text)
    if key:
        return _unknown(key[1] or key[2], overrides)
    if "Ambiguous value" in text:
        sweep = re.findall(r"'([^']+)'", text)[0]
        return f"{sweep} is a sweep; add -m to run every value as an arm of one plan."
    return f"{text.splitlines()[0]} (in: {' '.join(overrides)})"


def _unknown(key: str, overrides: Sequence[str]) -> str:
    nearest = _nearest(key, known_keys(overrides))
    return f"{key} is not a configuration key.{nearest} `sparring plan --config` prints them all."


def _type_message(error: ValidationError) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "union_tag_invalid":
        return f"{'.'.join(place)}.name={first['ctx']['tag']}: choose one of {first['ctx']['expected_tags']}."
    if place[0] == "objective":  # after it pydantic names which of the objectives it took
        del place[1]
    if first["type"] == "missing":
        return f"{'.'.join(place)} is not set; add {'.'.join(place)}=... to the command."
    return f"{'.'.join(place)}={first['input']}: {first['msg']}."


def known_keys(overrides: Sequence[str] = ()) -> list[str]:
    """Return every key and every group of the configuration, dotted, with the groups that `overrides` choose."""
    groups = [path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("__")]
    chosen = [one for one in overrides if one.partition("=")[0] in groups and "," not in one]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose("config", overrides=chosen))
    return sorted({*_keys(plain), *groups})


def dotted(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) of every leaf of nested dicts."""
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [leaf for key, value in node.items() for leaf in dotted(value, f"{prefix}.{key}" if prefix else str(key))]


def _keys(node: Any) -> list[str]:
    return [key for key, _ in dotted(node)]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        tail = name.split(".")[-1]
        close = [k for k in known if k.split(".")[-1] == tail][:1]
    return f" Did you mean {close[0]}?" if close else ""
