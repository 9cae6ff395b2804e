"""Latent repulsion of chosen and rejected responses: pooling of hidden states and the terms that push them apart.

u = x/|x|, x the final-norm last hidden state pooled over a response; d = |u_w - u_l| on unit vectors, so
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


def pool_weights(content: Tensor, pooling: str) -> Tensor:
    """Weights over positions whose sum is one per row.

    content: (R, T) bool, True at a response's tokens without its end-of-turn. `mean`: 1/n at each of the n content
    tokens; `last`: 1 at the last of them.
    """
    if pooling == "mean":
        return content.float() / content.sum(1, keepdim=True)
    positions = torch.arange(content.shape[1], device=content.device)
    last = torch.where(content, positions, -1).amax(1, keepdim=True)
    return (positions == last).float()


def pool(states: Tensor, weights: Tensor) -> Tensor:
    """Pool (R, T, H) states with (R, T) weights into (R, H), in fp32."""
    return torch.einsum("rt,rth->rh", weights.float(), states.float())


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
