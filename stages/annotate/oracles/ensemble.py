"""The oracle `ensemble`: other oracles, weighted.

    P(first better) = sum_k w_k sigmoid(M_k),   sum_k w_k = 1;   logit = log(P / (1 - P))

M_k: the logit of member k. Probabilities are mixed, not logits: no member counts for more than its weight, however
large its logits. The mixture can express cycles even where no member does. It is computed in logs, so that nothing
saturates, and is antisymmetric where all members are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparring.stages.annotate.oracle import Duel, Oracle, Verdicts
from sparring.stages.annotate.oracles import OracleContext, OracleOptions
from sparring.stages.annotate.oracles import load as load_oracle
from sparring.stages.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options(OracleOptions):
    """How the oracles of `oracle.members` are mixed."""

    weights: dict[str, float]
    """Member -> weight above 0; only the ratios count."""

    inputs: ClassVar[tuple[str, ...]] = ()
    has_members: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not 0 < weight < np.inf:
                raise ConfigError(f"oracle.options.weights.{name}={weight}: use a number above 0.")


def load(options: Options, context: OracleContext) -> Oracle:
    """Load every member."""
    assert context.judge is not None
    members = {
        name: load_oracle(member.kind, member.options, context.member(name))
        for name, member in context.judge.members.items()
    }
    return Ensemble(members, options.weights)


class Ensemble:
    """See the module. `trained_on`: of all members."""

    def __init__(self, members: Mapping[str, Oracle], weights: Mapping[str, float]) -> None:
        self.members = list(members.values())
        shares = np.array([weights[name] for name in members], dtype=np.float64)
        self.log_weights = np.log(shares / shares.sum())
        self.trained_on = frozenset().union(*(member.trained_on for member in self.members))

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Return the mixture's logits; a duel is truncated where any member truncated it."""
        verdicts = [member(duels) for member in self.members]
        logits = mixed(np.stack([one.logits for one in verdicts]), self.log_weights)
        return Verdicts(logits, np.any([one.truncated for one in verdicts], axis=0))


def mixed(logits: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """Return the (n,) logits of the mixture of members' (m, n), by the logs (m,) of weights that sum to 1."""
    weight = log_weights[:, None]
    won: np.ndarray = np.logaddexp.reduce(weight - np.logaddexp(0.0, -logits), axis=0)
    lost: np.ndarray = np.logaddexp.reduce(weight - np.logaddexp(0.0, logits), axis=0)
    return won - lost
