"""The objectives: one file each, chosen by `objective.name`. To add one, write a file and its yaml in conf/objective.

A file has one frozen dataclass: the objective's parameters are its fields, with their ranges; its formula is its
methods. What a method reads and returns is in base.py. torch is imported by what computes, since a plan reads the
parameters without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from sparring.stages.fields import classes_in
from sparring.stages.train.objectives.base import Objective

if TYPE_CHECKING:
    from sparring.stages.train.config import TrainSettings


def modules(settings: TrainSettings) -> list[str]:
    """Return the modules of the objective that a training takes."""
    return [type(settings.objective).__module__]


if TYPE_CHECKING:
    ObjectiveConfig = Objective
else:
    ObjectiveConfig = Annotated[Union[tuple(classes_in(__name__, Objective))], Field(discriminator="name")]  # noqa: UP007
