"""Stable Preference Optimization: a loss of the margin whose minimum is at m = alpha. arXiv 2508.07137."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sparring.stages.fields import Number
from sparring.stages.train.objectives.base import MarginObjective, Ranges, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Spo(MarginObjective):
    """f(z) = -z e^-z at z = m/alpha, least at m = alpha, where it is -1/e; plus kappa relu(h_l).

    Below z_min on along the tangent, f(z_min) + f'(z_min) (z - z_min), f'(z) = (z - 1) e^-z: f itself would grow
    exponentially there, and a clamp would leave those pairs without a gradient. The tangent and alpha are ours.
    """

    name: Literal["spo"]
    alpha: Number
    """The margin aimed at, in nats."""
    z_min: Number
    """m/alpha below which the loss is linear."""
    kappa: Number
    """Weight of relu(h_l): the rejected response does not become likelier."""
    ranges: ClassVar[Ranges] = {
        "alpha": (lambda it: it.alpha > 0, "must be positive; it is the margin aimed at, in nats"),
        "z_min": (lambda it: it.z_min < 1, "must be below 1, where the minimum is; -1 is usual"),
        "kappa": (lambda it: it.kappa >= 0, "use 0, or a positive weight"),
    }

    @property
    def minimum(self) -> float:
        """Alpha."""
        return self.alpha

    def of_margin(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """f, and (1 - z) e^-z / alpha, z at least z_min."""
        z = u / self.alpha
        curved = z.clamp_min(self.z_min)
        below = (z - self.z_min).where(z < self.z_min, 0.0)
        slope = (self.z_min - 1) * math.exp(-self.z_min)
        return -curved * (-curved).exp() + slope * below, (1 - curved) * (-curved).exp() / self.alpha

    def loss(self, scores: Scores) -> Tensor:
        """Return the loss of the margin and that of the rejected response."""
        return super().loss(scores) + self.kappa * scores.h[1].relu()

    def incentives(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """Return those of the margin; the rejected response is pushed down by kappa where h_l > 0."""
        d_w, d_l = super().incentives(scores)
        return d_w, d_l + self.kappa * (scores.h[1] > 0).to(d_l)
