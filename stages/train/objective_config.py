"""The parameters of each objective: one dataclass each, chosen by `objective.name`. No heavy import.

What the losses are: objectives.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from sparring.stages.errors import ConfigError
from sparring.stages.fields import Number


def _refuse_unless(holds: bool, key: str, value: object, remedy: str) -> None:
    if not holds:
        raise ConfigError(f"objective.{key}={value}: {remedy}.")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Of every objective."""

    loss_scale: Number | None
    """loss = loss_scale * (L + weight * L_rep); null is 1, for the sppo family 1/beta**2, the official gradient."""

    def __post_init__(self) -> None:
        scale = self.loss_scale
        _refuse_unless(scale is None or scale > 0, "loss_scale", scale, "use a number above 0, or null")


@dataclass(frozen=True, kw_only=True)
class Sppo(Objective):
    """Win rates as targets of h_w and h_l."""

    name: Literal["sppo", "sppo_single", "sppo_hard"]
    """By the targets: win rates, the pair's own duel P[w,l], or 1 and 0."""
    beta: Number
    """1/eta."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_unless(self.beta > 0, "beta", self.beta, "must be positive; the paper uses 0.001")


@dataclass(frozen=True, kw_only=True)
class Dpo(Objective):
    """Logistic loss of the margin m."""

    name: Literal["dpo"]
    beta: Number
    """Of the KL penalty, per nat of m."""
    label_smoothing: Number
    """Probability that a label is wrong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        smoothing = self.label_smoothing
        _refuse_unless(self.beta > 0, "beta", self.beta, "must be positive; 0.1 is usual")
        _refuse_unless(0 <= smoothing < 0.5, "label_smoothing", smoothing, "use 0, or a number below 0.5")


@dataclass(frozen=True, kw_only=True)
class Ipo(Objective):
    """Square of the margin's distance from 1/(2 tau)."""

    name: Literal["ipo"]
    tau: Number
    length_normalize: bool
    """Log-probs are means over a response's tokens, not sums."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_unless(self.tau > 0, "tau", self.tau, "must be positive; 0.1 is usual")


@dataclass(frozen=True, kw_only=True)
class Spo(Objective):
    """A loss of the margin whose minimum is at m = alpha."""

    name: Literal["spo"]
    alpha: Number
    """The margin aimed at, in nats."""
    z_min: Number
    """m/alpha below which the loss is linear."""
    kappa: Number
    """Weight of relu(h_l): the rejected response does not become likelier."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_unless(self.alpha > 0, "alpha", self.alpha, "must be positive; it is the margin aimed at, in nats")
        _refuse_unless(self.z_min < 1, "z_min", self.z_min, "must be below 1, where the minimum is; -1 is usual")
        _refuse_unless(self.kappa >= 0, "kappa", self.kappa, "use 0, or a positive weight")


@dataclass(frozen=True, kw_only=True)
class Inpo(Objective):
    """Square of the margin's distance from a mixture of those of base and reference, plus 1/(2 inpo_eta)."""

    name: Literal["inpo"]
    tau: Number
    """Of the KL penalty to the base."""
    inpo_eta: Number
    """Step size of mirror descent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_unless(self.inpo_eta > 0, "inpo_eta", self.inpo_eta, "must be positive")
        share = f"must lie between 0 and objective.inpo_eta={self.inpo_eta}: tau/inpo_eta is the base's share"
        _refuse_unless(0 <= self.tau <= self.inpo_eta, "tau", self.tau, share)


@dataclass(frozen=True, kw_only=True)
class Simpo(Objective):
    """Logistic loss of the difference of mean log-probs, without a reference."""

    name: Literal["simpo"]
    beta: Number
    gamma: Number
    """The margin aimed at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_unless(self.beta > 0, "beta", self.beta, "must be positive; the paper uses 2 to 2.5")
        _refuse_unless(self.gamma >= 0, "gamma", self.gamma, "use 0, or a positive margin")


ObjectiveConfig = Annotated[Sppo | Dpo | Ipo | Spo | Inpo | Simpo, Field(discriminator="name")]


def has_reference(objective: ObjectiveConfig) -> bool:
    """Whether the loss reads log-probs under pi_{t-1}."""
    return not isinstance(objective, Simpo)


def has_base(objective: ObjectiveConfig) -> bool:
    """Whether the loss reads log-probs under pi_0 as well."""
    return isinstance(objective, Inpo)
