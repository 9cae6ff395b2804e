"""INPO: self-play with a pull to the base. Zhang et al., arXiv 2407.00617."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sparring.stages.fields import Number
from sparring.stages.train.objectives.base import MarginObjective, Ranges, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Inpo(MarginObjective):
    """Square of the margin's distance from a mixture of those of base and reference, plus 1/(2 inpo_eta)."""

    name: Literal["inpo"]
    tau: Number
    """Of the KL penalty to the base."""
    inpo_eta: Number
    """Step size of mirror descent."""
    ranges: ClassVar[Ranges] = {
        "inpo_eta": (lambda it: it.inpo_eta > 0, "must be positive"),
        "tau": (
            lambda it: 0 <= it.tau <= it.inpo_eta,
            "must lie between 0 and objective.inpo_eta={inpo_eta}: tau/inpo_eta is the base's share",
        ),
    }
    reads_base: ClassVar[bool] = True

    @property
    def minimum(self) -> float:
        """1/(2 eta), eta = inpo_eta."""
        return 1 / (2 * self.inpo_eta)

    def margin(self, scores: Scores) -> Tensor:
        """m_theta - (tau/eta) m_0 - (1 - tau/eta) m_{t-1}, m_x = log pi_x(y_w) - log pi_x(y_l); eta is inpo_eta."""
        share = self.tau / self.inpo_eta
        m_ref, m_base = scores.ref_w - scores.ref_l, scores.base_w - scores.base_l
        return scores.z_w - scores.z_l - share * m_base - (1 - share) * m_ref

    def of_margin(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(u - 1/(2 eta))^2, and 2 (1/(2 eta) - u)."""
        return (u - self.minimum).square(), 2 * (self.minimum - u)
