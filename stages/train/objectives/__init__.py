"""The objectives: one file each, chosen by `objective.name`. To add one, write a file and its yaml in conf/objective.

A file has one frozen dataclass: the objective's parameters are its fields, with their ranges; its formula is its
methods. What a method reads and returns is in base.py. torch is imported by what computes, since a plan reads the
parameters without it.
"""

from __future__ import annotations

import importlib
from inspect import isabstract
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from sparring.stages.train.objectives.base import Objective

if TYPE_CHECKING:
    from sparring.stages.train.config import TrainSettings


def classes() -> list[type[Objective]]:
    """Return the objectives of all files of this folder."""
    files = [vars(importlib.import_module(f"{__name__}.{file.name}")) for file in iter_modules(__path__)]
    named = {name: one for file in files for name, one in file.items() if isinstance(one, type)}
    return [one for one in named.values() if issubclass(one, Objective) and not isabstract(one)]


def modules(settings: TrainSettings) -> list[str]:
    """Return the modules of the objective that a training takes."""
    return [type(settings.objective).__module__]


if TYPE_CHECKING:
    ObjectiveConfig = Objective
else:
    ObjectiveConfig = Annotated[Union[tuple(classes())], Field(discriminator="name")]  # noqa: UP007
