"""The preference losses of a pair of responses, and what they push. Pure torch; methods and sources by function.

Notation: z the summed log-prob of a response in nats, h = z_theta - z_ref its change; p in [0, 1] the win rate that the
response should have; w chosen, l rejected; m = h_w - h_l. All tensors are (B,), one entry per pair.

    loss(objective, scores)         L_beta: of order one for the sppo family, the published loss for the others
    loss_scale(objective)           the factor on it
    incentives(objective, scores)   d_w = -dL_beta/dz_w and d_l = dL_beta/dz_l: what is pushed up, and down, per nat

The gate enters all of them. `sppo` and `sppo_single` read gated win rates. The others read a hard label, chosen
beats rejected with probability 1, and the gate makes that q = 1/2 + (1 - G[w,l]) (1 - 1/2) = 1 - G[w,l]/2: they take
the mean over a label of that probability, q l(u) + (1 - q) l(-u) of their loss l at the margin u. q = 1, the published
loss bit for bit, where the gate is closed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sparring.stages.train.objective_config import Dpo, Inpo, Ipo, ObjectiveConfig, Simpo, Spo, Sppo


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What objectives read of B pairs, each (B,) float64; NaN where an input is missing."""

    z_w: Tensor
    """Log-prob of the chosen response under the policy in training, in nats."""
    z_l: Tensor
    ref_w: Tensor
    """Log-prob of the chosen response under the reference, pi_{t-1}."""
    ref_l: Tensor
    base_w: Tensor
    """Log-prob of the chosen response under the base, pi_0."""
    base_l: Tensor
    n_w: Tensor
    """Tokens of the chosen response."""
    n_l: Tensor
    p_w: Tensor
    """Target win rate of the chosen response."""
    p_l: Tensor
    p_wl: Tensor
    """Target of their duel: gated P[w,l]."""
    label: Tensor
    """q, the hard label after the gate: 1 - G[w,l]/2."""

    @property
    def h(self) -> tuple[Tensor, Tensor]:
        """Changes of the two log-probs."""
        return self.z_w - self.ref_w, self.z_l - self.ref_l


def loss(objective: ObjectiveConfig, scores: Scores) -> Tensor:
    """L_beta per pair."""
    if isinstance(objective, Sppo):
        return sppo(*scores.h, *win_rates(objective, scores), objective.beta)[0]
    u, q = margin(objective, scores), scores.label
    mean = q * of_margin(objective, u)[0] + (1 - q) * of_margin(objective, -u)[0]
    return mean + objective.kappa * scores.h[1].relu() if isinstance(objective, Spo) else mean


def incentives(objective: ObjectiveConfig, scores: Scores) -> tuple[Tensor, Tensor]:
    """d_w = -dL_beta/dz_w, d_l = dL_beta/dz_l, per pair."""
    if isinstance(objective, Sppo):
        return sppo(*scores.h, *win_rates(objective, scores), objective.beta)[1:]
    u, q = margin(objective, scores), scores.label
    pull = q * of_margin(objective, u)[1] - (1 - q) * of_margin(objective, -u)[1]
    per_w, per_l = slopes(objective, scores)
    d_w, d_l = per_w * pull, per_l * pull
    return (d_w, d_l + objective.kappa * (scores.h[1] > 0).to(d_l)) if isinstance(objective, Spo) else (d_w, d_l)


def loss_scale(objective: ObjectiveConfig) -> float:
    """Return the factor on L_beta; null is 1, and for the sppo family 1/beta^2, which gives the published gradient."""
    if objective.loss_scale is not None:
        return objective.loss_scale
    return 1.0 / objective.beta**2 if isinstance(objective, Sppo) else 1.0


def has_target(objective: ObjectiveConfig) -> bool:
    """Whether the loss is least at a finite place; those of dpo and simpo fall for ever."""
    return isinstance(objective, Sppo | Ipo | Spo | Inpo)


def saturation(objective: ObjectiveConfig, scores: Scores) -> tuple[Tensor, Tensor]:
    """Sums over the pairs (sum x*target, sum target^2); their ratio is the gauge. Of objectives that have a target.

    sppo family: x = h of each response, target = eta (p - 1/2). Others: x = u, target = (2q - 1) times where l(u) is
    least, which for spo under a gate is where its mean over labels is least only at q = 1 and 1/2.
    0: x has not moved; 1: x is, on average, where the loss is least. Sums, so that batches can be added up.
    """
    if isinstance(objective, Sppo):
        x, rates = torch.cat(scores.h), torch.cat(win_rates(objective, scores))
        target = (rates - 0.5) / objective.beta
    else:
        x, target = margin(objective, scores), (2 * scores.label - 1) * minimum(objective)
    return (x * target).sum(), target.square().sum()


def win_rates(objective: Sppo, scores: Scores) -> tuple[Tensor, Tensor]:
    """The targets (p_w, p_l) of the sppo family: win rates, P[w,l] and 1 - P[w,l], or the label and its opposite."""
    if objective.name == "sppo_single":
        return scores.p_wl, 1 - scores.p_wl
    if objective.name == "sppo_hard":
        return scores.label, 1 - scores.label
    return scores.p_w, scores.p_l


def sppo(h_w: Tensor, h_l: Tensor, p_w: Tensor, p_l: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """L_beta = 1/2 [(beta h_w - (p_w - 1/2))^2 + (beta h_l - (p_l - 1/2))^2], per pair. Wu et al., arXiv 2405.00675.

    beta^2 times the published loss 1/2 [(h_w - eta (p_w - 1/2))^2 + ...], so that it is of order one for any beta.
    Then d_w = beta ((p_w - 1/2) - beta h_w) and d_l = beta (beta h_l - (p_l - 1/2)): times 1/beta^2, the official
    scale, d_w = eta (p_w - 1/2) - h_w and d_l = h_l - eta (p_l - 1/2).
    """
    l_beta = 0.5 * ((beta * h_w - (p_w - 0.5)).square() + (beta * h_l - (p_l - 0.5)).square())
    return l_beta, beta * ((p_w - 0.5) - beta * h_w), beta * (beta * h_l - (p_l - 0.5))


Margin = Dpo | Ipo | Spo | Inpo | Simpo
"""Objectives of one number u per pair, linear in z_w and z_l."""


def margin(objective: Margin, scores: Scores) -> Tensor:
    """u: m; of ipo with length_normalize h_w/|w| - h_l/|l|; of simpo beta (z_w/|w| - z_l/|l|).

    Of inpo m_theta - (tau/eta) m_0 - (1 - tau/eta) m_{t-1}, m_x = log pi_x(y_w) - log pi_x(y_l), eta its own, not
    1/beta. Zhang et al., arXiv 2407.00617, whose loss is the square of its distance from 1/(2 eta).
    """
    if isinstance(objective, Inpo):
        share = objective.tau / objective.inpo_eta
        m_ref, m_base = scores.ref_w - scores.ref_l, scores.base_w - scores.base_l
        return scores.z_w - scores.z_l - share * m_base - (1 - share) * m_ref
    of_w, of_l = (scores.z_w, scores.z_l) if isinstance(objective, Simpo) else scores.h
    per_w, per_l = slopes(objective, scores)
    return per_w * of_w - per_l * of_l


def slopes(objective: Margin, scores: Scores) -> tuple[Tensor, Tensor]:
    """(du/dz_w, -du/dz_l): 1/|y| of ipo with length_normalize, beta/|y| of simpo, else 1."""
    match objective:
        case Simpo(beta=beta):
            return beta / scores.n_w, beta / scores.n_l
        case Ipo(length_normalize=True):
            return 1 / scores.n_w, 1 / scores.n_l
        case _:
            return torch.ones_like(scores.z_w), torch.ones_like(scores.z_l)


def of_margin(objective: Margin, u: Tensor) -> tuple[Tensor, Tensor]:
    """l(u) and -dl/du, per pair."""
    match objective:
        case Dpo(beta=beta, label_smoothing=smoothing):
            return dpo(u, beta, smoothing)
        case Ipo(tau=tau):
            return squared(u, tau)
        case Spo(alpha=alpha, z_min=z_min):
            return spo(u, alpha, z_min)
        case Inpo(inpo_eta=eta):
            return squared(u, eta)
        case Simpo(gamma=gamma):
            return simpo(u, gamma)


def minimum(objective: Margin) -> float:
    """Where l(u) is least."""
    match objective:
        case Ipo(tau=tau):
            return 1 / (2 * tau)
        case Inpo(inpo_eta=eta):
            return 1 / (2 * eta)
        case Spo(alpha=alpha):
            return alpha
        case _:
            raise ValueError(f"{objective.name} has no finite minimum")


def dpo(m: Tensor, beta: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """-(1 - eps) log sigma(beta m) - eps log sigma(-beta m), eps = smoothing. Rafailov et al., arXiv 2305.18290.

    d_w = d_l = beta [(1 - eps) sigma(-beta m) - eps sigma(beta m)].
    """
    value = -(1 - smoothing) * logsigmoid(beta * m) - smoothing * logsigmoid(-beta * m)
    return value, beta * ((1 - smoothing) * torch.sigmoid(-beta * m) - smoothing * torch.sigmoid(beta * m))


def squared(u: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """(u - 1/(2 tau))^2 and 2 (1/(2 tau) - u): ipo, Azar et al., arXiv 2310.12036 eq. 17; inpo with its eta for tau."""
    return (u - 1 / (2 * tau)).square(), 2 * (1 / (2 * tau) - u)


def spo(m: Tensor, alpha: float, z_min: float) -> tuple[Tensor, Tensor]:
    """f(z) = -z e^-z at z = m/alpha, least at m = alpha, where it is -1/e. arXiv 2508.07137.

    Below z_min on along the tangent, f(z_min) + f'(z_min) (z - z_min), f'(z) = (z - 1) e^-z: f itself would grow
    exponentially there, and a clamp would leave those pairs without a gradient. The tangent and alpha are ours.
    d_w = d_l = (1 - z) e^-z / alpha, z at least z_min.
    """
    z = m / alpha
    curved = z.clamp_min(z_min)
    slope = (z_min - 1) * math.exp(-z_min)
    value = -curved * torch.exp(-curved) + slope * torch.where(z < z_min, z - z_min, 0.0)
    return value, (1 - curved) * torch.exp(-curved) / alpha


def simpo(u: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """-log sigma(u - gamma) and sigma(gamma - u), u = beta (z_w/|w| - z_l/|l|), |y| in tokens. Meng et al.,
    arXiv 2405.14734. The second times beta/|y| is d of each response.
    """
    return -logsigmoid(u - gamma), torch.sigmoid(gamma - u)
