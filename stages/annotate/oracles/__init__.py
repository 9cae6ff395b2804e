"""The oracles: one file for each `oracle.kind`. To add one, write a file in this folder and its yaml in conf/oracle.

Of each file is used
    Options(Base)                      a frozen dataclass: the keys of `oracle.options`, part of an artifact's identity;
                                     it refuses what it cannot use
    load(options, context) -> Oracle   what compares responses: one method

The import of a file is light, since a plan looks at Options: model libraries are imported by `load`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError

from sparring.stages.annotate.oracle import Oracle
from sparring.stages.errors import ConfigError
from sparring.stages.fields import described, hints, validator

if TYPE_CHECKING:
    from sparring.stages.annotate.config import JudgeConfig, ScoreSettings


class Base:
    """Of every oracle's Options: what it needs."""

    inputs: ClassVar[tuple[str, ...]] = ("judge",)
    """Roles of the folders that it is loaded from."""
    engine: ClassVar[bool] = False
    """Whether it runs vLLM where it has no servers: then its process runs no other step."""
    servers: ClassVar[bool] = False
    """Whether `oracle.urls` may be where it runs; its folder is not loaded then."""
    mixes: ClassVar[bool] = False
    """Whether it is made of `oracle.members`."""

    looks: ClassVar[bool] = False
    """Whether `look` needs transformers: then it is called in a process of its own, once for a content."""
    reads: ClassVar[str] = "duels"
    """What its time grows with: `duels`; `responses`, each read once for all its duels; `texts`, prompts as well."""

    def look(self, folder: Path) -> None:
        """Refuse a folder, before a run, that `load` would refuse; no weights are read."""

    def complaint(self, urls: tuple[str, ...]) -> str | None:
        """Return what is wrong with the servers that it is given, if anything is."""
        return "urls: it asks no server; leave urls empty" if urls and not self.servers else None


@dataclass(frozen=True, kw_only=True)
class OracleContext:
    """What an oracle is loaded from, and where it runs."""

    folders: Mapping[str, Path]
    """By role: `judge`, `encoder`; those of a member have its name before them: `first.judge`."""
    judge: JudgeConfig | None = None
    """Its configuration: servers, and the members of an ensemble."""
    cpus: int = 1
    gpus: int = 0

    @property
    def device(self) -> str:
        """Where a model lives."""
        return "cuda" if self.gpus else "cpu"

    def member(self, name: str) -> OracleContext:
        """Return what the member `name` is loaded from."""
        assert self.judge is not None
        member = self.judge.members[name]
        own = {role: folder for role, folder in self.folders.items() if f"{role}.".startswith(f"{name}.")}
        folders = {role.removeprefix(name).removeprefix("."): folder for role, folder in own.items()}
        return replace(self, folders=folders, judge=member)


@cache
def kinds() -> list[str]:
    """Return what `oracle.kind` may be."""
    return sorted(module.name for module in iter_modules(__path__))


def options_of(kind: str, key: str = "oracle") -> Any:
    """Return the class of an oracle's Options."""
    return _file(kind, key).Options


def all_options() -> list[type[Any]]:
    """Return the Options of all oracles."""
    return [options_of(kind) for kind in kinds()]


def options(kind: str, chosen: Mapping[str, Any], key: str = "oracle") -> Any:
    """Return the Options of an oracle; ConfigError names the key that is wrong. key: where the oracle is configured."""
    wanted = options_of(kind, key)
    known = [one.name for one in fields(wanted)]
    for name in chosen:
        if name not in known:
            ours = f"its options: {', '.join(known)}" if known else "it has no options"
            raise ConfigError(f"{key}.options.{name}: {kind} does not know that key; {ours}.")
    try:
        return validator(wanted).validate_python(dict(chosen))
    except ConfigError as error:  # of the options, which do not know their key
        raise ConfigError(f"{key}{str(error).removeprefix('oracle')}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([key, "options", *map(str, first["loc"])])
        if first["type"] == "missing":
            raise ConfigError(f"{where} is not set; add {where}=... to the command.") from None
        right = described(hints(wanted)[str(first["loc"][0])])
        raise ConfigError(f"{where}={first['input']}: {right}.") from None


def load(kind: str, chosen: Mapping[str, Any], context: OracleContext) -> Oracle:
    """Load an oracle."""
    oracle: Oracle = _file(kind).load(options(kind, chosen), context)
    return oracle


def modules(settings: ScoreSettings) -> list[str]:
    """Return the modules of the oracles that a step `score` takes: of its own and of its members."""
    judges = [settings.oracle]
    for judge in judges:  # which grows: members of members too
        judges += judge.members.values()
    return [f"{__name__}.{judge.kind}" for judge in judges]


def _file(kind: str, key: str = "oracle") -> Any:
    if kind not in kinds():
        raise ConfigError(f"{key}.kind={kind}: choose one of {', '.join(kinds())}.")
    return importlib.import_module(f"{__name__}.{kind}")
