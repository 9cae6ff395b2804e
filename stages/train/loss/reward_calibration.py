"""Reward calibration: balances how hard an objective pushes the chosen and the rejected response. arXiv 2604.18239.

    r = mean d_w / mean d_l                 how much harder the chosen response is pushed up
    r* = |grad mean z_l| / |grad mean z_w|  the centre of the disentanglement band
    delta = exp(1/2 (log r* - log r))       from running means of the four logs up to the step before
    z_w <- delta z_w + (1 - delta) sg(z_w),  z_l <- z_l/delta + (1 - 1/delta) sg(z_l)

Values stay; the incentives become delta d_w and d_l/delta, whose ratio is r* where the running means are exact. The
gradients are those of the head's weight. Means and norms are of the global batch. Pure torch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparring.stages.train.config import RewardCalibrationConfig

LOGS = ("log_d_w", "log_d_l", "log_norm_w", "log_norm_l")


def log_delta(log_d_w: float, log_d_l: float, log_norm_w: float, log_norm_l: float, limit: float) -> float:
    """log delta = 1/2 (log r* - log r), kept within +-limit; r = d_w/d_l, r* = norm_l/norm_w."""
    unbounded = 0.5 * ((log_norm_l - log_norm_w) - (log_d_w - log_d_l))
    return max(-limit, min(limit, unbounded))


def calibrate(z: Tensor, delta: float) -> Tensor:
    """Z with equal values, whose chosen half passes on delta times its gradient and the rejected half 1/delta times.

    z: (2B,) log-probs in nats, chosen first. z + (f - 1)(z - sg(z)) is the formula above, exact in its value.
    """
    factor = torch.tensor([delta, 1 / delta], dtype=z.dtype, device=z.device).repeat_interleave(len(z) // 2)
    return z + (factor - 1) * (z - z.detach())


class RewardCalibration:
    """Running means of the four logs, and the delta of the next optimizer step that follows from them.

    A step in which a mean incentive or a norm is not above 0 has no logs: it leaves the means, and the step after it is
    not calibrated. `skipped` counts those.
    """

    def __init__(self, settings: RewardCalibrationConfig) -> None:
        self.settings = settings
        self.logs: dict[str, float] = {}
        self.held, self.skipped = False, 0

    @property
    def delta(self) -> float:
        """Of the next step; 1 before the first and after a step that had no logs."""
        if self.held or not self.logs:
            return 1.0
        return math.exp(log_delta(**self.logs, limit=self.settings.max_log_delta))

    def update(self, d_w: float, d_l: float, norm_w: float, norm_l: float) -> None:
        """Add a step's mean incentives and the norms of the gradients of its mean z_w and z_l to the running means."""
        values = (d_w, d_l, norm_w, norm_l)
        self.held = min(values) <= 0
        self.skipped += self.held
        if self.held:
            return
        new = {name: math.log(value) for name, value in zip(LOGS, values, strict=True)}
        keep = self.settings.ema if self.logs else 0.0
        self.logs = {name: keep * self.logs.get(name, 0.0) + (1 - keep) * log for name, log in new.items()}

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as JSON can hold it."""
        return {"logs": self.logs, "held": self.held, "skipped": self.skipped}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.logs, self.held, self.skipped = state["logs"], state["held"], state["skipped"]
