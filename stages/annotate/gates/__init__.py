"""The gates: one file each, chosen by `gate.name`. To add one, write a file and its yaml in conf/gate.

A file has one frozen dataclass: the gate's settings are its fields, and `curve` is its formula. What all gates have in
common is in base.py; how g enters the targets is in annotate/gate.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from sparring.stages.annotate.gates.base import ActiveGate, OffGate
from sparring.stages.fields import classes_in


def modules(settings: Any) -> list[str]:
    """Return the module of the gate that a step `calibrate` takes, or `pairs` where it selects by gated win rates."""
    gated = getattr(settings, "gated", settings)
    return [type(gated.gate).__module__] if gated else []


if TYPE_CHECKING:
    GateConfig = OffGate | ActiveGate
else:
    GateConfig = Annotated[Union[OffGate, *classes_in(__name__, ActiveGate)], Field(discriminator="name")]
