"""The preference loss of a pair of responses, and what it pushes. Pure torch; formulas of Wu et al., arXiv 2405.00675.

Notation: h = z_theta - z_ref, the change of a response's summed log-prob in nats; p in [0, 1], the win rate that the
response should have; beta = 1/eta; w chosen, l rejected. All tensors are (B,), one entry per pair.
"""

from __future__ import annotations

from torch import Tensor


def sppo(h_w: Tensor, h_l: Tensor, p_w: Tensor, p_l: Tensor, beta: float) -> Tensor:
    """L_beta = 1/2 [(beta h_w - (p_w - 1/2))^2 + (beta h_l - (p_l - 1/2))^2], per pair.

    beta^2 times the published loss 1/2 [(h_w - eta (p_w - 1/2))^2 + ...], so that it is of order one for any beta.
    """
    chosen = (beta * h_w - (p_w - 0.5)).square()
    rejected = (beta * h_l - (p_l - 0.5)).square()
    return 0.5 * (chosen + rejected)


def loss_scale(value: float | None, beta: float) -> float:
    """Return the factor on L_beta; None is 1/beta^2, which gives the published gradient."""
    return 1.0 / beta**2 if value is None else value


def sppo_incentives(
    h_w: Tensor, h_l: Tensor, p_w: Tensor, p_l: Tensor, beta: float, scale: float
) -> tuple[Tensor, Tensor]:
    """d_w = -dL/dz_w and d_l = dL/dz_l of L = scale * L_beta, in units of L per nat.

    With scale = 1/beta^2: d_w = eta (p_w - 1/2) - h_w, d_l = h_l - eta (p_l - 1/2).
    """
    d_w = scale * beta * ((p_w - 0.5) - beta * h_w)
    d_l = scale * beta * (beta * h_l - (p_l - 0.5))
    return d_w, d_l


def saturation(h_w: Tensor, h_l: Tensor, p_w: Tensor, p_l: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Sums over the pairs (sum h*target, sum target^2), target = eta (p - 1/2); their ratio is the gauge.

    0: h has not moved; 1: h is, on average, where the loss is least. Sums, so that batches can be added up.
    """
    target_w, target_l = (p_w - 0.5) / beta, (p_l - 0.5) / beta
    moved = (h_w * target_w).sum() + (h_l * target_l).sum()
    return moved, target_w.square().sum() + target_l.square().sum()
