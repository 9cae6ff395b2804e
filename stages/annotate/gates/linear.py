"""The gate of S-SPPO: linear between floor and ceil. arXiv 2606.01561; thresholds are ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparring.stages.annotate.gates.base import ActiveGate, Array


@dataclass(frozen=True, kw_only=True)
class LinearGate(ActiveGate):
    """g = x."""

    name: Literal["linear"]

    def curve(self, x: Array) -> Array:
        """Return x."""
        return x
