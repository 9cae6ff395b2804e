"""Configuration of the evaluate stage: held-out head-to-head win rates with intervals. No heavy import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from sparring.stages.fields import ELSEWHERE, MOST_RESPONSES, NO_BOOL, Count
from sparring.stages.step import StepSpec

EVALUATE = StepSpec(
    kind="evaluate",
    version=1,
    worker="sparring.stages.evaluate.stage:Evaluator",
    shards="sparring.stages.evaluate.stage:shards",
    finish="sparring.stages.evaluate.stage:finish",
)


CROSSPLAY = StepSpec(
    kind="crossplay",
    version=1,
    worker="sparring.stages.evaluate.crossplay:Crossplay",
    shards="sparring.stages.evaluate.stage:shards",
    finish="sparring.stages.evaluate.crossplay:finish",
)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    k: Annotated[int, Field(ge=1, le=MOST_RESPONSES), NO_BOOL, ELSEWHERE]
    """Responses per held-out prompt."""
    shard_rows: Annotated[Count, ELSEWHERE]
    """Held-out prompts per shard."""
    resamples: Annotated[int, Field(ge=100, le=100_000), NO_BOOL]
    """Of the bootstrap over prompts."""
    confidence: Annotated[float, Field(gt=0.5, lt=1, allow_inf_nan=False), NO_BOOL]
    """Of the intervals."""
    crossplay: Annotated[bool, ELSEWHERE]
    """From iteration 2 on every policy against every other one, by both judges. Adds steps."""
    kl: Annotated[bool, ELSEWHERE]
    """Measure KL to the previous policy and to the base on the held-out responses. Adds steps."""
    best_of: Annotated[int, Field(ge=1, le=MOST_RESPONSES), NO_BOOL, ELSEWHERE]
    """Responses to a held-out prompt of which the oracle's best is judged as well; 1: no such suite. Adds steps."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Of `evaluate` and `crossplay`.

    Inputs of evaluate: `samples` (held-out, new policy) and versus-mode score artifacts, left = new policy:
    `oracle_previous`, `oracle_base`, `second_previous`, `second_base`: judge and the policy played against.
    Two roles may be the same artifact (in iteration 1 the previous policy is the base). Of a best-of-n policy it is
    `single` in place of `previous`: the same policy with one response.
    Inputs of crossplay: for each judge and each two policies a versus-mode score artifact: `oracle_03_01` has the
    responses of π_3 left, those of π_1 right.
    """

    evaluate: EvaluateConfig
    seed: int
