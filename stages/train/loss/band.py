"""The disentanglement band: does a step on a pair raise the chosen response and lower the rejected one? Pure torch.

Every pairwise objective moves the parameters along d_w s_w - d_l s_l, s = dz/dtheta. With rho = cos(s_w, s_l),
r* = |s_l|/|s_w|, all of d_w, d_l and rho above 0: to first order, without preconditioning, the chosen response does not
fall and the rejected one does not rise if and only if  rho r* <= d_w/d_l <= r*/rho.  arXiv 2604.18239.

Measured on the head's weight alone: a band of that part of the parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SUMS = ("rho", "log_r_star", "log_ratio", "in_band", "reversed", "rho_negative")
"""What `sums` adds up over pairs."""
TINY = 1e-300
"""Least squared norm: a gradient of exactly zero keeps finite figures."""


def geometry(products: Tensor) -> tuple[Tensor, Tensor]:
    """(rho, r*) per pair of products (B, 3): s_w.s_w, s_l.s_l, s_w.s_l."""
    ww, ll, wl = products.clamp_min(TINY)[:, 0], products.clamp_min(TINY)[:, 1], products[:, 2]
    return wl / (ww.sqrt() * ll.sqrt()), (ll / ww).sqrt()


def in_band(rho: Tensor, r_star: Tensor, d_w: Tensor, d_l: Tensor) -> Tensor:
    """Whether rho r* <= d_w/d_l <= r*/rho with d_w, d_l and rho above 0, (B,) bool."""
    inside = (rho * r_star * d_l <= d_w) & (rho * d_w <= r_star * d_l)
    return inside & (d_w > 0) & (d_l > 0) & (rho > 0)


def sums(products: Tensor, d_w: Tensor, d_l: Tensor) -> Tensor:
    """SUMS over the pairs, (6,) float64. Four kinds of pair: in band, `reversed`, `rho_negative`, and the rest.

    reversed: d_w <= 0 or d_l <= 0; rho_negative: rho <= 0 in a pair that is not reversed, which any ratio serves.
    log_ratio = log d_w/d_l of pairs that are not reversed, 0 for the others.
    """
    rho, r_star = geometry(products)
    turned = (d_w <= 0) | (d_l <= 0)
    log_ratio = torch.where(turned, 1.0, d_w / d_l).log()
    negative = (rho <= 0) & ~turned
    inside = in_band(rho, r_star, d_w, d_l)
    return torch.stack([row.double().sum() for row in (rho, r_star.log(), log_ratio, inside, turned, negative)])


def record(total: Tensor, pairs: int) -> dict[str, float]:
    """Figures of a global batch from its SUMS: shares and rho are means, r_star and incentive_ratio geometric means.

    incentive_ratio is d_w/d_l over the pairs that are not reversed; absent when all are.
    """
    named = dict(zip(SUMS, total.tolist(), strict=True))
    straight = pairs - round(named["reversed"])
    ratio = {"incentive_ratio": math.exp(named["log_ratio"] / straight)} if straight else {}
    means = {name: named[name] / pairs for name in ("rho", "in_band", "reversed", "rho_negative")}
    return means | {"r_star": math.exp(named["log_r_star"] / pairs)} | ratio
