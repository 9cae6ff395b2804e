"""The loss of a batch of pairs, objective and repulsion together, and what is recorded of it. Pure torch."""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.stages.train.batch.collate import COLUMNS
from sparring.stages.train.config import OffRepulsion, RepulsionConfig
from sparring.stages.train.loss import repulsion
from sparring.stages.train.objectives.base import Objective, Scores

SUMS = ("loss", "l_beta", "l_rep", "z_w", "z_l", "d_w", "d_l", "distance")
"""Recorded as means over the pairs of the global batch."""
MOVES = ("h_w", "h_l", "h_w_negative", "abs_h")
"""Likewise, where the objective has a reference."""
GAUGE = ("moved", "norm")
"""Two sums whose ratio is the saturation gauge, where the objective has a target."""


def recorded(objective: Objective) -> tuple[str, ...]:
    """Names of the sums that `pair_losses` returns."""
    return (*SUMS, *(MOVES if objective.reads_reference else ()), *(GAUGE if objective.has_target else ()))


def scores_of(z: Tensor, batch: dict[str, Tensor]) -> Scores:
    """Return what an objective reads of a batch of B pairs; z: (2B,) chosen first, batch: that of `collate`."""
    z_w, z_l = z.chunk(2)
    n_w, n_l = batch["response_mask"].sum(1).double().chunk(2)
    return Scores(z_w=z_w, z_l=z_l, n_w=n_w, n_l=n_l, **{name: batch[name] for name in COLUMNS})


def pair_losses(
    z: Tensor,
    states: Tensor,
    batch: dict[str, Tensor],
    objective: Objective,
    term: RepulsionConfig,
) -> tuple[Tensor, Tensor]:
    """Return the losses (B,) of a batch of B pairs, and the sums `recorded` over its pairs, float64.

    loss of a pair = loss_scale * (L_beta + weight * L_rep); z: (2B,) chosen first; states: (2B, H).
    """
    scores = scores_of(z, batch)
    scale = objective.scale
    l_beta = objective.loss(scores)
    if isinstance(term, OffRepulsion):
        d = repulsion.distance(*states.detach().chunk(2)).double()
        l_rep, weight = torch.zeros_like(d), 0.0
    else:
        d = repulsion.distance(*states.chunk(2)).double()
        l_rep, weight = repulsion.loss(term, d), term.weight
    losses = scale * (l_beta + weight * l_rep)
    with torch.no_grad():
        d_w, d_l = objective.incentives(scores)
        rows = [losses, l_beta, l_rep, scores.z_w, scores.z_l, scale * d_w, scale * d_l, d]
        if objective.reads_reference:
            h_w, h_l = scores.h
            rows += [h_w, h_l, (h_w < 0).double(), (h_w.abs() + h_l.abs()) / 2]
        gauge = objective.saturation(scores) if objective.has_target else ()
        sums = torch.stack([*(row.sum() for row in rows), *gauge])
    return losses, sums
