"""A gate that opens late or early, and the two controls, which are such a gate without its semantics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparring.stages.annotate.gates.base import ActiveGate, Array
from sparring.stages.fields import Positive


@dataclass(frozen=True, kw_only=True)
class PowerGate(ActiveGate):
    """g = x^exponent. The controls take the settings of the gate that they control.

    permuted: g matrices are shuffled across prompts of equal K; rescaled: one factor shrinks all targets, which in sum
    shrink as much as under the gate.
    """

    name: Literal["power", "permuted", "rescaled"]
    exponent: Positive
    """Above 1 the gate opens late, below 1 early; 1 is linear."""

    @property
    def control(self) -> Literal["", "permuted", "rescaled"]:
        """Return the control that its name is."""
        return "" if self.name == "power" else self.name

    def curve(self, x: Array) -> Array:
        """Return x^exponent."""
        return x**self.exponent
