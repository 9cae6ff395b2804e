"""The group `diagnostics`: the thresholds of the rules, and which of them stop an arm."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Annotated

from pydantic import Field

from sparring.stages.errors import ConfigError
from sparring.stages.fields import NO_BOOL, NonNegative, Share


@dataclass(frozen=True, kw_only=True)
class DiagnosticsConfig:
    """Runtime only, in no fingerprint: when an iteration is warned of. Each rule by its name; null: never.

    The rules are pipeline/runs/rules.py.
    """

    overoptimized: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False), NO_BOOL] | None
    """How far below 1/2 the second judge is while the oracle's interval lies above."""
    longer: Annotated[float, Field(ge=1, allow_inf_nan=False), NO_BOOL] | None
    """Held-out length in tokens, times the base's."""
    shorter: Share | None
    """Likewise."""
    capped: Share | None
    """Share of held-out responses that hit sampler.max_tokens."""
    repeats: Share | None
    """Diversity as a share of iteration 1's, or of the base's."""
    similar: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False), NO_BOOL] | None
    """Mean similarity over the K responses of a prompt."""
    collapsed: Share | None
    """Distance of chosen and rejected states as a share of iteration 1's."""
    chosen_falls: Share | None
    """Share of chosen responses that training makes less likely."""
    ties: Share | None
    """Share of pairs in which the oracle sees no difference."""
    position: Share | None
    """Share of pairs whose winner changes with the order."""
    reversed: Share | None
    """Share of pairs that a step pushes the wrong way."""
    learned_nothing: NonNegative | None
    """How far chosen and rejected move apart at least, times the noise before training."""
    stop_on: tuple[str, ...]
    """Rules that stop an arm before its next iteration."""

    def __post_init__(self) -> None:
        names = [one.name for one in fields(self) if one.name != "stop_on"]
        for rule in self.stop_on:
            if rule not in names:
                near = get_close_matches(rule, names, n=1, cutoff=0.5)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ConfigError(f"diagnostics.stop_on: {rule} is no rule.{hint} There are: {', '.join(names)}.")
            if getattr(self, rule) is None:
                raise ConfigError(f"diagnostics.stop_on: {rule} never fires with diagnostics.{rule}=null; set it.")
