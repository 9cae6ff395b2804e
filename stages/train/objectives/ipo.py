"""IPO: the square of the margin's distance from 1/(2 tau). Azar et al., arXiv 2310.12036 eq. 17."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sparring.stages.fields import Number
from sparring.stages.train.objectives.base import MarginObjective, Ranges, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Ipo(MarginObjective):
    """(u - 1/(2 tau))^2, u = m or, with length_normalize, h_w/|w| - h_l/|l|."""

    name: Literal["ipo"]
    tau: Number
    length_normalize: bool
    """Log-probs are means over a response's tokens, not sums."""
    ranges: ClassVar[Ranges] = {"tau": (lambda it: it.tau > 0, "must be positive; 0.1 is usual")}

    @property
    def minimum(self) -> float:
        """1/(2 tau)."""
        return 1 / (2 * self.tau)

    def slopes(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """1/|y| with length_normalize, else 1."""
        return (1 / scores.n_w, 1 / scores.n_l) if self.length_normalize else super().slopes(scores)

    def of_margin(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and 2 (1/(2 tau) - u)."""
        return (u - self.minimum).square(), 2 * (self.minimum - u)
