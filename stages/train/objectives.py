"""The preference losses of a pair of responses, and what they push. Pure torch; methods and sources by function.

Notation: z the summed log-prob of a response in nats, h = z_theta - z_ref its change; p in [0, 1] the win rate that the
response should have; w chosen, l rejected. All tensors are (B,), one entry per pair.

    loss(objective, scores)         L_beta, of order one where the objective has a scale of its own
    loss_scale(objective)           the factor on it
    incentives(objective, scores)   d_w = -dL_beta/dz_w and d_l = dL_beta/dz_l: what is pushed up, and down, per nat
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stages.train.config import ObjectiveIdentity


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What objectives read of B pairs, each (B,) float64."""

    z_w: Tensor
    """Log-prob of the chosen response under the policy in training, in nats."""
    z_l: Tensor
    ref_w: Tensor
    """Log-prob of the chosen response under the reference."""
    ref_l: Tensor
    p_w: Tensor
    """Target win rate of the chosen response."""
    p_l: Tensor

    @property
    def h(self) -> tuple[Tensor, Tensor]:
        """Changes of the two log-probs."""
        return self.z_w - self.ref_w, self.z_l - self.ref_l


def loss(objective: ObjectiveIdentity, scores: Scores) -> Tensor:
    """L_beta per pair."""
    h_w, h_l = scores.h
    return sppo(h_w, h_l, scores.p_w, scores.p_l, objective.beta)


def incentives(objective: ObjectiveIdentity, scores: Scores) -> tuple[Tensor, Tensor]:
    """d_w = -dL_beta/dz_w, d_l = dL_beta/dz_l, per pair."""
    h_w, h_l = scores.h
    return sppo_incentives(h_w, h_l, scores.p_w, scores.p_l, objective.beta)


def loss_scale(objective: ObjectiveIdentity) -> float:
    """Return the factor on L_beta; null is 1/beta^2, which gives the published gradient."""
    return 1.0 / objective.beta**2 if objective.loss_scale is None else objective.loss_scale


def saturation(objective: ObjectiveIdentity, scores: Scores) -> tuple[Tensor, Tensor]:
    """Sums over the pairs (sum h*target, sum target^2), target = eta (p - 1/2); their ratio is the gauge.

    0: h has not moved; 1: h is, on average, where the loss is least. Sums, so that batches can be added up.
    """
    h_w, h_l = scores.h
    target_w, target_l = (scores.p_w - 0.5) / objective.beta, (scores.p_l - 0.5) / objective.beta
    moved = (h_w * target_w).sum() + (h_l * target_l).sum()
    return moved, target_w.square().sum() + target_l.square().sum()


def sppo(h_w: Tensor, h_l: Tensor, p_w: Tensor, p_l: Tensor, beta: float) -> Tensor:
    """L_beta = 1/2 [(beta h_w - (p_w - 1/2))^2 + (beta h_l - (p_l - 1/2))^2], per pair. Wu et al., arXiv 2405.00675.

    beta^2 times the published loss 1/2 [(h_w - eta (p_w - 1/2))^2 + ...], so that it is of order one for any beta.
    """
    chosen = (beta * h_w - (p_w - 0.5)).square()
    rejected = (beta * h_l - (p_l - 0.5)).square()
    return 0.5 * (chosen + rejected)


def sppo_incentives(h_w: Tensor, h_l: Tensor, p_w: Tensor, p_l: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """d_w = beta ((p_w - 1/2) - beta h_w), d_l = beta (beta h_l - (p_l - 1/2)).

    Times 1/beta^2, the official scale: d_w = eta (p_w - 1/2) - h_w, d_l = h_l - eta (p_l - 1/2).
    """
    return beta * ((p_w - 0.5) - beta * h_w), beta * (beta * h_l - (p_l - 0.5))
