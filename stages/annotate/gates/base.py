"""What all gates have in common: floor, ceil and scope; and the gate that is off."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sparring.stages.errors import ConfigError
from sparring.stages.fields import NO_BOOL, OnlyIf, Share

Array = NDArray[np.float64]
Similarity = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False), NO_BOOL]
Scope = Literal["pairwise", "pair", "row_mean"]


@dataclass(frozen=True, kw_only=True)
class OffGate:
    """The targets are the win rates, bit for bit."""

    name: Literal["off"]
    scope: ClassVar[Scope] = "pairwise"
    control: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class ActiveGate(ABC):
    """The settings of every gate that is not off."""

    name: str
    floor: Annotated[Similarity, OnlyIf(lambda gate, _: gate.floor_quantile is None, "without gate.floor_quantile")]
    """Similarity up to which the gate changes nothing."""
    floor_quantile: Share | None
    """When set, floor is this quantile of all off-diagonal similarities of the iteration."""
    ceil: Annotated[Similarity, OnlyIf(lambda gate, _: gate.ceil_quantile is None, "without gate.ceil_quantile")]
    """Similarity from which on the targets are 1/2."""
    ceil_quantile: Share | None
    """When set, ceil is this quantile of the same similarities."""
    scope: Scope
    """Which similarity shrinks P[i, j]: that of i and j (pairwise), that of chosen and rejected (pair), or the mean of
    those of i (row_mean)."""

    def __post_init__(self) -> None:
        """Raise for a floor that is not below the ceil."""
        low, high = self.floor_quantile, self.ceil_quantile
        if low is None and high is None and not self.floor < self.ceil:
            raise ConfigError(f"gate.floor={self.floor} must be below gate.ceil={self.ceil}.")
        if low is not None and high is not None and not low < high:
            raise ConfigError(f"gate.floor_quantile={low} must be below gate.ceil_quantile={high}.")

    @property
    def control(self) -> Literal["", "permuted", "rescaled"]:
        """For a control, what it takes from the gate that it controls: its semantics, or its differences."""
        return ""

    @abstractmethod
    def curve(self, x: Array) -> Array:
        """Return g in [0, 1] of x = clip((s - floor) / (ceil - floor), 0, 1), elementwise; 0 of 0 and 1 of 1."""

    def g(self, similarity: Array, floor: float, ceil: float) -> Array:
        """Return g of similarities: 0 at s <= floor, 1 at s >= ceil. floor, ceil: as found by the quantiles, if any."""
        return self.curve(np.clip((similarity - floor) / (ceil - floor), 0.0, 1.0))
