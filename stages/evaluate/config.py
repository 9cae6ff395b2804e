"""Configuration of the evaluate stage: held-out head-to-head win rates with intervals. No heavy import."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.stages.errors import ConfigError
from sparring.stages.step import StepSpec

EVALUATE = StepSpec(
    kind="evaluate",
    version=1,
    worker="sparring.stages.evaluate.stage:Evaluator",
    shards="sparring.stages.evaluate.stage:shards",
    finish="sparring.stages.evaluate.stage:finish",
)


@dataclass(frozen=True, kw_only=True)
class EvaluateIdentity:
    """Inputs: `samples` (held-out, new policy) and versus-mode score artifacts, left = new policy.

    `oracle_previous`, `oracle_base`, `second_previous`, `second_base`: judge and the policy played against.
    Two roles may be the same artifact (in iteration 1 the previous policy is the base). Of a best-of-n policy it is
    `single` in place of `previous`: the same policy with one response.
    """

    resamples: int
    """Bootstrap resamples over prompts."""
    confidence: float
    seed: int

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ConfigError(f"evaluate.resamples={self.resamples}: use a positive number, such as 2000.")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"evaluate.confidence={self.confidence}: use a number between 0 and 1, such as 0.95.")


CROSSPLAY = StepSpec(
    kind="crossplay",
    version=1,
    worker="sparring.stages.evaluate.crossplay_step:Crossplay",
    shards="sparring.stages.evaluate.stage:shards",
    finish="sparring.stages.evaluate.crossplay_step:finish",
)


@dataclass(frozen=True, kw_only=True)
class CrossplayIdentity(EvaluateIdentity):
    """Inputs: for each judge and each two policies a versus-mode score artifact.

    `oracle_03_01` has the responses of π_3 left, those of π_1 right.
    """
