"""What all objectives are made of: what they read of a pair, and what the losses of one margin have in common.

Notation: z the summed log-prob of a response in nats, h = z_theta - z_ref its change; p in [0, 1] the win rate that the
response should have; w chosen, l rejected; m = h_w - h_l. All tensors are (B,), one entry per pair.

The gate enters all of them. `sppo` and `sppo_single` read gated win rates. The others read a hard label, chosen
beats rejected with probability 1, and the gate makes that q = 1/2 + (1 - G[w,l]) (1 - 1/2) = 1 - G[w,l]/2: they take
the mean over a label of that probability, q l(u) + (1 - q) l(-u) of their loss l at the margin u. q = 1, the published
loss bit for bit, where the gate is closed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparring.stages.errors import ConfigError
from sparring.stages.fields import Number

if TYPE_CHECKING:
    from torch import Tensor

Ranges = Mapping[str, tuple[Callable[[Any], bool], str]]
"""Key -> whether an objective's value is in range, and what to do where it is not."""


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


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """Parameters and formula of every objective."""

    name: str
    loss_scale: Number | None
    """loss = loss_scale * (L + weight * L_rep); null is 1, for the sppo family 1/beta**2, the official gradient."""
    ranges: ClassVar[Ranges] = {}
    reads_reference: ClassVar[bool] = True
    """Whether the loss reads log-probs under pi_{t-1}."""
    reads_base: ClassVar[bool] = False
    """Whether the loss reads log-probs under pi_0 as well."""

    def __post_init__(self) -> None:
        scale: Ranges = {
            "loss_scale": (lambda it: it.loss_scale is None or it.loss_scale > 0, "use a number above 0, or null")
        }
        for key, (holds, remedy) in {**scale, **self.ranges}.items():
            if not holds(self):
                raise ConfigError(f"objective.{key}={getattr(self, key)}: {remedy.format_map(vars(self))}.")

    @property
    def reads_duel(self) -> bool:
        """Whether the loss reads P[w,l], the duel of chosen and rejected itself."""
        return False

    @property
    def scale(self) -> float:
        """The factor on L_beta."""
        return 1.0 if self.loss_scale is None else self.loss_scale

    @property
    @abstractmethod
    def has_target(self) -> bool:
        """Whether the loss is least at a finite place."""

    @abstractmethod
    def loss(self, scores: Scores) -> Tensor:
        """L_beta per pair: of order one for the sppo family, the published loss for the others."""

    @abstractmethod
    def incentives(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """d_w = -dL_beta/dz_w and d_l = dL_beta/dz_l per pair: what is pushed up, and down, per nat."""

    @abstractmethod
    def saturation(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """Sums over the pairs (sum x*target, sum target^2); their ratio is the gauge. Of objectives with a target.

        x is what the loss moves, target where it is least. 0: x has not moved; 1: x is, on average, at its target.
        Sums, so that batches can be added up.
        """


@dataclass(frozen=True, kw_only=True)
class MarginObjective(Objective):
    """An objective of one number u per pair, linear in z_w and z_l: u = m unless `margin` or `slopes` say otherwise."""

    @property
    def minimum(self) -> float | None:
        """Where l(u) is least; None: it falls for ever."""
        return None

    @abstractmethod
    def of_margin(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """l(u) and -dl/du, per pair."""

    def slopes(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """(du/dz_w, -du/dz_l)."""
        import torch

        return torch.ones_like(scores.z_w), torch.ones_like(scores.z_l)

    def margin(self, scores: Scores) -> Tensor:
        """U per pair."""
        (per_w, per_l), (h_w, h_l) = self.slopes(scores), scores.h
        return per_w * h_w - per_l * h_l

    def loss(self, scores: Scores) -> Tensor:
        """Return q l(u) + (1 - q) l(-u)."""
        u, q = self.margin(scores), scores.label
        return q * self.of_margin(u)[0] + (1 - q) * self.of_margin(-u)[0]

    def incentives(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """Return d_w and d_l: the pull on u, times each response's slope."""
        u, q = self.margin(scores), scores.label
        pull = q * self.of_margin(u)[1] - (1 - q) * self.of_margin(-u)[1]
        per_w, per_l = self.slopes(scores)
        return per_w * pull, per_l * pull

    @property
    def has_target(self) -> bool:
        """Whether l(u) has a minimum."""
        return self.minimum is not None

    def saturation(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """x = u, target = (2q - 1) times where l(u) is least.

        Under a gate the mean over labels of spo is least there only at q = 1 and 1/2.
        """
        if self.minimum is None:
            raise ValueError(f"{self.name} has no finite minimum")
        target = (2 * scores.label - 1) * self.minimum
        return (self.margin(scores) * target).sum(), target.square().sum()
