"""SPPO: win rates as targets of h_w and h_l. Wu et al., arXiv 2405.00675."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sparring.stages.fields import Number
from sparring.stages.train.objectives.base import Objective, Ranges, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sppo(Objective):
    """L_beta = 1/2 [(beta h_w - (p_w - 1/2))^2 + (beta h_l - (p_l - 1/2))^2], per pair.

    beta^2 times the published loss 1/2 [(h_w - eta (p_w - 1/2))^2 + ...], so that it is of order one for any beta.
    Then d_w = beta ((p_w - 1/2) - beta h_w) and d_l = beta (beta h_l - (p_l - 1/2)): times 1/beta^2, the official
    scale, d_w = eta (p_w - 1/2) - h_w and d_l = h_l - eta (p_l - 1/2).
    """

    name: Literal["sppo", "sppo_single", "sppo_hard"]
    """By the targets: win rates, the pair's own duel P[w,l], or 1 and 0."""
    beta: Number
    """1/eta."""
    ranges: ClassVar[Ranges] = {"beta": (lambda it: it.beta > 0, "must be positive; the paper uses 0.001")}

    @property
    def reads_duel(self) -> bool:
        """Whether P[w,l] is the target."""
        return self.name == "sppo_single"

    @property
    def scale(self) -> float:
        """1/beta^2, which gives the published gradient, unless it is set."""
        return 1.0 / self.beta**2 if self.loss_scale is None else self.loss_scale

    @property
    def has_target(self) -> bool:
        """The win rates."""
        return True

    def win_rates(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """The targets (p_w, p_l): win rates, P[w,l] and 1 - P[w,l], or the label and its opposite."""
        if self.name == "sppo_single":
            return scores.p_wl, 1 - scores.p_wl
        if self.name == "sppo_hard":
            return scores.label, 1 - scores.label
        return scores.p_w, scores.p_l

    def loss(self, scores: Scores) -> Tensor:
        """L_beta."""
        (h_w, h_l), (p_w, p_l) = scores.h, self.win_rates(scores)
        return 0.5 * ((self.beta * h_w - (p_w - 0.5)).square() + (self.beta * h_l - (p_l - 0.5)).square())

    def incentives(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """Return d_w and d_l."""
        (h_w, h_l), (p_w, p_l) = scores.h, self.win_rates(scores)
        return self.beta * ((p_w - 0.5) - self.beta * h_w), self.beta * (self.beta * h_l - (p_l - 0.5))

    def saturation(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """x = h of each response, target = eta (p - 1/2)."""
        import torch

        x, rates = torch.cat(scores.h), torch.cat(self.win_rates(scores))
        target = (rates - 0.5) / self.beta
        return (x * target).sum(), target.square().sum()
