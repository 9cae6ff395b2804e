"""SimPO: the logistic loss of the difference of mean log-probs, without a reference. Meng et al., arXiv 2405.14734."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sparring.stages.fields import Number
from sparring.stages.train.objectives.base import MarginObjective, Ranges, Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Simpo(MarginObjective):
    """-log sigma(u - gamma), u = beta (z_w/|w| - z_l/|l|), |y| in tokens."""

    name: Literal["simpo"]
    beta: Number
    gamma: Number
    """The margin aimed at."""
    ranges: ClassVar[Ranges] = {
        "beta": (lambda it: it.beta > 0, "must be positive; the paper uses 2 to 2.5"),
        "gamma": (lambda it: it.gamma >= 0, "use 0, or a positive margin"),
    }
    reads_reference: ClassVar[bool] = False

    def slopes(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """beta/|y|."""
        return self.beta / scores.n_w, self.beta / scores.n_l

    def margin(self, scores: Scores) -> Tensor:
        """U per pair."""
        per_w, per_l = self.slopes(scores)
        return per_w * scores.z_w - per_l * scores.z_l

    def of_margin(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and sigma(gamma - u)."""
        from torch.nn.functional import logsigmoid

        return -logsigmoid(u - self.gamma), (self.gamma - u).sigmoid()
