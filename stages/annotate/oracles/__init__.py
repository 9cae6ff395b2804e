"""The oracles: one file for each `oracle.kind`. To add one, write a file in this folder and its yaml in conf/oracle.

Each file defines
    Options(OracleOptions)             a frozen dataclass: the keys of `oracle.options`, part of an artifact's identity;
                                     it raises ConfigError for values that cannot be used
    load(options, context) -> Oracle   loads what compares responses

Importing a file must be fast, because `sparring plan` reads Options: `load` imports the model libraries.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
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


class OracleOptions:
    """Base class of every oracle's Options: what the oracle needs."""

    inputs: ClassVar[tuple[str, ...]] = ("judge",)
    """Roles of the folders that it is loaded from."""
    engine: ClassVar[bool] = False
    """Whether it runs vLLM where `oracle.urls` is empty: then its process runs no other step."""
    servers: ClassVar[bool] = False
    """Whether it can run at the servers of `oracle.urls`; no folder is loaded then."""
    has_members: ClassVar[bool] = False
    """Whether it combines the oracles of `oracle.members`."""
    needs_transformers_to_check: ClassVar[bool] = False
    """Whether `check_folder` needs transformers: then it runs in its own process, once for each content."""
    cost_unit: ClassVar[str] = "duels"
    """What its time grows with: `duels`; `responses`, each read once for all its duels; `texts`, prompts as well."""

    def check_folder(self, folder: Path) -> None:
        """Raise, before a run, the error that `load` would raise for a folder; no weights are read."""

    @staticmethod
    def on(gpus: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of an oracle with this many GPUs: each option that depends on them has its value there."""
        return dict(values)

    def urls_error(self, urls: tuple[str, ...]) -> str | None:
        """Return what is wrong with `oracle.urls`, None where they can be used."""
        return "urls: it asks no server; leave urls empty" if urls and not self.servers else None


@dataclass(frozen=True, kw_only=True)
class OracleContext:
    """The folders that an oracle is loaded from, and where it runs."""

    folders: Mapping[str, Path]
    """Role -> folder: `judge`, `encoder`; a member's roles begin with its name: `first.judge`."""
    judge: JudgeConfig | None = None
    """Its configuration: servers, and the members of an ensemble."""
    cpus: int = 1
    gpus: int = 0

    @property
    def device(self) -> str:
        """The torch device of its model."""
        return "cuda" if self.gpus else "cpu"

    def member(self, name: str) -> OracleContext:
        """Return the context of the member `name`."""
        assert self.judge is not None
        prefix = f"{name}."
        folders = {
            role.removeprefix(prefix): folder for role, folder in self.folders.items() if role.startswith(prefix)
        }
        return replace(self, folders=folders, judge=self.judge.members[name])


@cache
def kinds() -> list[str]:
    """Return the values that `oracle.kind` may have."""
    return sorted(module.name for module in iter_modules(__path__))


def options_class(kind: str, key: str = "oracle") -> type[OracleOptions]:
    """Return the Options of an oracle; key: as in `options`."""
    found: type[OracleOptions] = _module(kind, key).Options
    return found


def all_options() -> list[type[Any]]:
    """Return the Options of all oracles."""
    return [options_class(kind) for kind in kinds()]


def options(kind: str, values: Mapping[str, Any], key: str = "oracle") -> Any:
    """Return the Options of an oracle with these values; ConfigError names the key that is wrong.

    key: where the oracle is configured: `oracle`, `judge`, `oracle.members.first`.
    """
    model: Any = options_class(kind, key)
    names = list(hints(model))
    for name in values:
        if name not in names:
            remedy = f"its options: {', '.join(names)}" if names else "it has no options"
            raise ConfigError(f"{key}.options.{name}: {kind} does not know that key; {remedy}.")
    try:
        return validator(model).validate_python(dict(values))
    except ConfigError as error:  # raised by Options, which write `oracle` for any key
        raise ConfigError(f"{key}{str(error).removeprefix('oracle')}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([key, "options", *map(str, first["loc"])])
        if first["type"] == "missing":
            raise ConfigError(f"{where} is not set; add {where}=... to the command.") from None
        raise ConfigError(f"{where}={first['input']}: {described(hints(model)[str(first['loc'][0])])}.") from None


def load(kind: str, values: Mapping[str, Any], context: OracleContext) -> Oracle:
    """Load an oracle. values: of its Options."""
    oracle: Oracle = _module(kind).load(options(kind, values), context)
    return oracle


def resolved(judge: JudgeConfig, gpus: int) -> JudgeConfig:
    """Return a judge and its members with the options that they have with this many GPUs, as fingerprints have them."""
    members = {name: resolved(member, gpus) for name, member in judge.members.items()}
    return replace(judge, options=options_class(judge.kind).on(gpus, judge.options), members=members)


def modules(settings: ScoreSettings) -> list[str]:
    """Return the modules that define the oracle of a step `score`, its members and theirs."""
    judges = [settings.oracle]
    for judge in judges:  # the list grows by members of members
        judges += judge.members.values()
    return [f"{__name__}.{judge.kind}" for judge in judges]


def _module(kind: str, key: str = "oracle") -> Any:
    if kind not in kinds():
        raise ConfigError(f"{key}.kind={kind}: choose one of {', '.join(kinds())}.")
    return importlib.import_module(f"{__name__}.{kind}")
