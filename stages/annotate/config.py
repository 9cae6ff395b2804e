"""Configuration of the annotate stage: judges, encoder, gate, selection, and the settings of its steps: score, embed,
pairs, calibrate, best. No heavy import.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from sparring.stages.annotate import oracles
from sparring.stages.annotate.gates import GateConfig
from sparring.stages.annotate.gates.base import ActiveGate
from sparring.stages.errors import ConfigError
from sparring.stages.fields import (
    ELSEWHERE,
    LOCATION,
    NO_BOOL,
    RUNTIME,
    Count,
    OnlyIf,
    Options,
    Place,
    Text,
)
from sparring.stages.step import StepSpec

WinRate = Literal["matrix", "aggregate_score", "cross_fit"]
"""matrix (default); aggregate_score (the published mode, which erases cycles); or cross_fit (with oracle.opponents: one
half of the opponents selects the pairs, so that the targets have no selection bias)."""


SCORE = StepSpec(
    kind="score",
    version=2,
    worker="sparring.stages.annotate.score:Scorer",
    shards="sparring.stages.annotate.rows:shards",
    finish="sparring.stages.annotate.score:finish",
    prepare="sparring.stages.annotate.score:prepare",
    pool="annotators",
    modules="sparring.stages.annotate.oracles:modules",
)
EMBED = StepSpec(
    kind="embed",
    version=1,
    worker="sparring.stages.annotate.embed:Embedder",
    shards="sparring.stages.annotate.rows:shards",
    finish="sparring.stages.annotate.embed:finish",
    prepare="sparring.stages.annotate.embed:prepare",
    pool="annotators",
)
PAIRS = StepSpec(
    kind="pairs",
    version=3,
    worker="sparring.stages.annotate.pairs:Pairer",
    shards="sparring.stages.annotate.pairs:shards",
    finish="sparring.stages.annotate.pairs:finish",
    pool="tasks",
    modules="sparring.stages.annotate.gates:modules",
)
CALIBRATE = StepSpec(
    kind="calibrate",
    version=2,
    worker="sparring.stages.annotate.calibrate:Calibrator",
    shards="sparring.stages.annotate.calibrate:shards",
    finish="sparring.stages.annotate.calibrate:finish",
    pool="tasks",
    modules="sparring.stages.annotate.gates:modules",
)
BEST = StepSpec(
    kind="best",
    version=1,
    worker="sparring.stages.annotate.best:Chooser",
    shards="sparring.stages.annotate.rows:shards",
    finish="sparring.stages.annotate.best:finish",
    pool="tasks",
)
IMPORT_PAIRS = StepSpec(
    kind="pairs",
    version=1,
    worker="sparring.stages.annotate.imported:Importer",
    shards="sparring.stages.annotate.rows:shards",
    finish="sparring.stages.annotate.imported:finish",
    pool="in_process",
)


# Conditions of OnlyIf below. They are functions because a lambda in an annotation cannot see imported names.


def _is_loaded(judge: Any, _: Any) -> bool:
    return "judge" in oracles.options_class(judge.kind).inputs and not judge.urls


def _from_package_or_hub(judge: Any, config: Any) -> bool:
    return _is_loaded(judge, config) and judge.path is None


def _from_hub(judge: Any, config: Any) -> bool:
    return _from_package_or_hub(judge, config) and judge.repo is not None


def _may_have_urls(judge: Any, _: Any) -> bool:
    return bool(oracles.options_class(judge.kind).servers)


def _options(judge: Any) -> Any:
    return oracles.options(judge.kind, judge.options)


def _has_members(judge: Any, _: Any) -> bool:
    return bool(oracles.options_class(judge.kind).has_members)


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Settings of the oracle, of a member of an ensemble, and of the second judge. Its files are inputs of the step."""

    kind: str
    """A file of stages/annotate/oracles."""
    path: Annotated[
        Place | None, OnlyIf(_is_loaded, "by a judge that is loaded from a folder, without urls"), LOCATION
    ] = None
    """A folder; null: the embedded judge of this kind, or that of the hub."""
    repo: Annotated[
        Text | None,
        OnlyIf(_from_package_or_hub, "by a judge that is loaded from a folder, without path and urls"),
        LOCATION,
    ] = None
    """owner/name on the hub."""
    revision: Annotated[Text | None, OnlyIf(_from_hub, "beside repo, without path and urls"), LOCATION] = None
    """A commit; a branch is resolved to one when the run begins, and written down."""
    options: Annotated[dict[str, Any], Options(_options, oracles.all_options)] = field(default_factory=dict)
    """The options of this kind, part of an artifact's identity."""
    urls: Annotated[tuple[str, ...], OnlyIf(_may_have_urls, "by a judge that asks servers, such as llm"), RUNTIME] = ()
    """Servers that run it, of a kind that asks servers: http://host:port."""
    members: Annotated[dict[str, JudgeConfig], OnlyIf(_has_members, "by an ensemble")] = field(default_factory=dict)
    """Of an ensemble."""


@dataclass(frozen=True, kw_only=True)
class OracleConfig(JudgeConfig):
    opponents: Annotated[Annotated[int, Field(ge=2), NO_BOOL] | None, ELSEWHERE]
    """Responses that each response is compared with, fewer than sampler.k; null: all."""


@dataclass(frozen=True, kw_only=True)
class EncoderBase:
    """The settings of every encoder."""

    window: Count
    """Longest text of one pass in the encoder's tokens, special ones too; longer responses are chunked."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedEncoder(EncoderBase):
    source: Annotated[Literal["embedded"], LOCATION]


@dataclass(frozen=True, kw_only=True)
class HubEncoder(EncoderBase):
    source: Annotated[Literal["hub"], LOCATION]
    path: Annotated[Place | None, LOCATION]
    """A local copy of the model; null: downloaded."""
    repo: Annotated[
        Text, OnlyIf(lambda encoder, _: encoder.path is None, "without encoder.path, which is a local copy"), LOCATION
    ]
    revision: Annotated[
        Text, OnlyIf(lambda encoder, _: encoder.path is None, "without encoder.path, which is a local copy"), LOCATION
    ]


@dataclass(frozen=True, kw_only=True)
class FolderEncoder(EncoderBase):
    """A model of sentence-transformers."""

    source: Annotated[Literal["folder"], LOCATION]
    path: Annotated[Place, LOCATION]


EncoderConfig = Annotated[EmbeddedEncoder | HubEncoder | FolderEncoder, Field(discriminator="source")]


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    by: Literal["extremes", "all_pairs", "top_vs_random"]
    """The best response against the worst; all pairs; or the best against one drawn from the worse ones."""
    values: Annotated[
        Literal["win_rates", "gated"],
        OnlyIf(lambda _, config: config.gate.name != "off", "with a gate that is not off"),
        ELSEWHERE,
    ]
    """The values that order the responses of a prompt."""
    require_head_to_head: bool
    """Drop pairs whose chosen response loses the duel against the rejected one."""
    capped: Literal["keep", "drop"]
    """What happens to pairs with a response that hit sampler.max_tokens."""


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Inputs: `samples`, those of the oracle (`judge`, `encoder`, `first.judge`), optionally `opponents`: samples."""

    oracle: JudgeConfig
    anchors: int | None
    """Responses that each response is compared with; null: all of the prompt's. Only without `opponents`."""
    seed: int
    """Of the draw of anchors; 0 without one."""


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """Inputs: `samples`, `encoder`."""

    encoder: EncoderConfig


@dataclass(frozen=True, kw_only=True)
class BestSettings:
    """Inputs: `samples`, `scores`. The output is `samples` with the best response of each prompt."""

    win_rate: WinRate


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """Inputs: `pairs`, and `embeddings` unless the gate is off."""

    gate: GateConfig
    seed: int
    """Of the permuted control; 0 without it."""
    dealt_over: Literal["pairs", "prompts"]
    """Prompts whose g the permuted control shuffles: those with `pairs`, or all where the gate selects the pairs."""


@dataclass(frozen=True, kw_only=True)
class PairsSettings:
    """Inputs: `samples`, `scores`, and `embeddings` where pairs are selected by gated win rates."""

    win_rate: WinRate
    selection: SelectionConfig
    seed: int
    """Of top_vs_random; 0 without it."""
    gated: CalibrateSettings | None
    """The gate of the win rates that select the pairs; null: ungated win rates select them."""

    def __post_init__(self) -> None:
        """Raise for gates that depend on the selected pairs."""
        gate = self.gated.gate if self.gated else None
        if isinstance(gate, ActiveGate) and gate.scope == "pair":
            raise ConfigError(
                "selection.values=gated with gate.scope=pair: that scope needs the pair to gate by; "
                "use pairwise or row_mean, or selection.values=win_rates."
            )
        if isinstance(gate, ActiveGate) and gate.control == "rescaled":
            raise ConfigError(
                f"selection.values=gated with gate={gate.name}: what it shrinks by is known once pairs are selected; "
                "use selection.values=win_rates."
            )


@dataclass(frozen=True, kw_only=True)
class ImportPairsSettings:
    """Input: `samples`, imported with preferences. P, chosen and rejected are the file's."""
