"""The parameters of each objective: one dataclass each, chosen by `objective.name`. No heavy import.

What the losses are: loss/objectives.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sparring.stages.errors import ConfigError
from sparring.stages.fields import Number

Ranges = Mapping[str, tuple[Callable[[Any], bool], str]]
"""Key -> whether an objective's value is in range, and what to do where it is not."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Of every objective."""

    loss_scale: Number | None
    """loss = loss_scale * (L + weight * L_rep); null is 1, for the sppo family 1/beta**2, the official gradient."""
    ranges: ClassVar[Ranges] = {}

    def __post_init__(self) -> None:
        scale: Ranges = {
            "loss_scale": (lambda it: it.loss_scale is None or it.loss_scale > 0, "use a number above 0, or null")
        }
        for key, (holds, remedy) in {**scale, **self.ranges}.items():
            if not holds(self):
                raise ConfigError(f"objective.{key}={getattr(self, key)}: {remedy.format_map(vars(self))}.")


@dataclass(frozen=True, kw_only=True)
class Sppo(Objective):
    """Win rates as targets of h_w and h_l."""

    name: Literal["sppo", "sppo_single", "sppo_hard"]
    """By the targets: win rates, the pair's own duel P[w,l], or 1 and 0."""
    beta: Number
    """1/eta."""
    ranges: ClassVar[Ranges] = {"beta": (lambda it: it.beta > 0, "must be positive; the paper uses 0.001")}


@dataclass(frozen=True, kw_only=True)
class Dpo(Objective):
    """Logistic loss of the margin m."""

    name: Literal["dpo"]
    beta: Number
    """Of the KL penalty, per nat of m."""
    label_smoothing: Number
    """Probability that a label is wrong."""
    ranges: ClassVar[Ranges] = {
        "beta": (lambda it: it.beta > 0, "must be positive; 0.1 is usual"),
        "label_smoothing": (lambda it: 0 <= it.label_smoothing < 0.5, "use 0, or a number below 0.5"),
    }


@dataclass(frozen=True, kw_only=True)
class Ipo(Objective):
    """Square of the margin's distance from 1/(2 tau)."""

    name: Literal["ipo"]
    tau: Number
    length_normalize: bool
    """Log-probs are means over a response's tokens, not sums."""
    ranges: ClassVar[Ranges] = {"tau": (lambda it: it.tau > 0, "must be positive; 0.1 is usual")}


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
    ranges: ClassVar[Ranges] = {
        "alpha": (lambda it: it.alpha > 0, "must be positive; it is the margin aimed at, in nats"),
        "z_min": (lambda it: it.z_min < 1, "must be below 1, where the minimum is; -1 is usual"),
        "kappa": (lambda it: it.kappa >= 0, "use 0, or a positive weight"),
    }


@dataclass(frozen=True, kw_only=True)
class Inpo(Objective):
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


@dataclass(frozen=True, kw_only=True)
class Simpo(Objective):
    """Logistic loss of the difference of mean log-probs, without a reference."""

    name: Literal["simpo"]
    beta: Number
    gamma: Number
    """The margin aimed at."""
    ranges: ClassVar[Ranges] = {
        "beta": (lambda it: it.beta > 0, "must be positive; the paper uses 2 to 2.5"),
        "gamma": (lambda it: it.gamma >= 0, "use 0, or a positive margin"),
    }


ObjectiveConfig = Annotated[Sppo | Dpo | Ipo | Spo | Inpo | Simpo, Field(discriminator="name")]


def has_reference(objective: ObjectiveConfig) -> bool:
    """Whether the loss reads log-probs under pi_{t-1}."""
    return not isinstance(objective, Simpo)


def has_base(objective: ObjectiveConfig) -> bool:
    """Whether the loss reads log-probs under pi_0 as well."""
    return isinstance(objective, Inpo)
