"""Latent repulsion: the terms that push the hidden states of chosen and rejected responses apart.

u = x/|x|, x the hidden states pooled over a response (see model/forward.py); d = |u_w - u_l| on unit vectors, so
d^2 = 2 - 2 cos(u_w, u_l). Pure torch. S-SPPO, arXiv 2606.01561; variant, margin and pooling are choices of ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.stages.train.config import HingeRepulsion, PlainRepulsion

DISTANCE_EPS = 1e-12
"""Under the root of d: equal states keep a finite gradient."""
LOG_EPS = 1e-6
"""Inside the log: equal states keep a finite value."""


def distance(x_w: Tensor, x_l: Tensor) -> Tensor:
    """d = sqrt(|u_w - u_l|^2 + 1e-12) of pooled states (B, H), per pair, in [0, 2]."""
    u_w, u_l = torch.nn.functional.normalize(x_w, dim=1), torch.nn.functional.normalize(x_l, dim=1)
    return ((u_w - u_l).square().sum(1) + DISTANCE_EPS).sqrt()


def loss(chosen: PlainRepulsion | HingeRepulsion, d: Tensor) -> Tensor:
    """L_rep per pair as a function of d.

    hinge: max(0, margin - d)^2; neg_sq: -d^2; cosine: cos(u_w, u_l) = 1 - d^2/2; log: -log(d^2 + eps).
    """
    if isinstance(chosen, HingeRepulsion):
        return (chosen.margin - d).clamp_min(0).square()
    match chosen.name:
        case "neg_sq":
            return -d.square()
        case "cosine":
            return 1 - d.square() / 2
        case "log":
            return -(d.square() + LOG_EPS).log()
