"""DPO: the logistic loss of the margin m. Rafailov et al., arXiv 2305.18290."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sparring.stages.fields import Number
from sparring.stages.train.objectives.base import MarginObjective, Ranges

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Dpo(MarginObjective):
    """-(1 - eps) log sigma(beta m) - eps log sigma(-beta m), eps = label_smoothing."""

    name: Literal["dpo"]
    beta: Number
    """Of the KL penalty, per nat of m."""
    label_smoothing: Number
    """Probability that a label is wrong."""
    ranges: ClassVar[Ranges] = {
        "beta": (lambda it: it.beta > 0, "must be positive; 0.1 is usual"),
        "label_smoothing": (lambda it: 0 <= it.label_smoothing < 0.5, "use 0, or a number below 0.5"),
    }

    def of_margin(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and d_w = d_l = beta [(1 - eps) sigma(-beta m) - eps sigma(beta m)]."""
        from torch.nn.functional import logsigmoid

        scaled, smoothing = self.beta * u, self.label_smoothing
        value = -(1 - smoothing) * logsigmoid(scaled) - smoothing * logsigmoid(-scaled)
        return value, self.beta * ((1 - smoothing) * (-scaled).sigmoid() - smoothing * scaled.sigmoid())
