"""Configuration of the annotate stage: score, embed, pairs, calibrate. No heavy import."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sparring.stages.annotate import oracles
from sparring.stages.errors import ConfigError
from sparring.stages.step import StepSpec


def _spec(kind: str, version: int, worker: str, pool: str, prepare: str = "") -> StepSpec:
    module = f"sparring.stages.annotate.{kind}"
    return StepSpec(
        kind=kind,
        version=version,
        worker=f"{module}:{worker}",
        shards=f"{module}:shards",
        finish=f"{module}:finish",
        prepare=prepare,
        pool=pool,
    )


SCORE = replace(
    _spec("score", 2, "Scorer", "annotators", "sparring.stages.annotate.score:prepare"),
    modules="sparring.stages.annotate.oracles:modules",
)
EMBED = _spec("embed", 1, "Embedder", "annotators", "sparring.stages.annotate.embed:prepare")
PAIRS = _spec("pairs", 2, "Pairer", "tasks")
CALIBRATE = _spec("calibrate", 2, "Calibrator", "tasks")
BEST = _spec("best", 1, "Chooser", "tasks")
IMPORT_PAIRS = StepSpec(
    kind="pairs",
    version=1,
    worker="sparring.stages.annotate.imported:Importer",
    shards="sparring.stages.annotate.imported:shards",
    finish="sparring.stages.annotate.imported:finish",
    pool="here",
)


@dataclass(frozen=True, kw_only=True)
class OracleIdentity:
    """An oracle: what defines its logits beside its files."""

    kind: str
    """A file of oracles/."""
    options: dict[str, Any]
    members: dict[str, OracleIdentity] = field(default_factory=dict)
    """Of an ensemble."""

    def __post_init__(self) -> None:
        oracles.options(self.kind, self.options)
        weighted, members = sorted(self.options.get("weights", {})), sorted(self.members)
        if weighted != members:
            raise ConfigError(
                f"oracle.options.weights has {', '.join(weighted) or 'none'}, oracle.members "
                f"{', '.join(members) or 'none'}: each member of an ensemble needs a weight, others have none."
            )
        if any("." in name for name in members):
            raise ConfigError(f"oracle.members: {', '.join(members)}: a member's name has no dot.")


@dataclass(frozen=True, kw_only=True)
class ScoreIdentity:
    """Inputs: `samples`, those of the oracle (`judge`, `encoder`, `first.judge`), optionally `opponents`: samples."""

    oracle: OracleIdentity
    anchors: int | None
    """Responses that every response is compared with; null: all of the prompt's. Only without `opponents`."""
    seed: int
    """Draws the anchors; else 0."""

    def __post_init__(self) -> None:
        if self.anchors is not None and self.anchors < 2:
            raise ConfigError(f"oracle.opponents={self.anchors}: use at least 2, or null for all responses.")


@dataclass(frozen=True, kw_only=True)
class EmbedIdentity:
    """Inputs: `samples`, `encoder`."""

    window: int
    """Longest text of one pass in the encoder's tokens, special ones too; longer responses are chunked."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"encoder.window={self.window}: use a positive number of tokens.")


WIN_RATES = ("matrix", "aggregate_score", "cross_fit")


def _check_win_rate(chosen: str) -> None:
    if chosen not in WIN_RATES:
        raise ConfigError(f"win_rate={chosen}: choose matrix, aggregate_score or cross_fit.")


@dataclass(frozen=True, kw_only=True)
class BestIdentity:
    """Inputs: `samples`, `scores`. What comes out are `samples` too, with the best response alone."""

    win_rate: str
    """As that of PairsIdentity."""

    def __post_init__(self) -> None:
        _check_win_rate(self.win_rate)


@dataclass(frozen=True, kw_only=True)
class PairsIdentity:
    """Inputs: `samples`, `scores`, and `embeddings` where the gate has a say."""

    win_rate: str
    """matrix (default), aggregate_score (the published mode, which erases cycles) or cross_fit (of a matrix of which
    oracle.opponents leaves gaps: pairs selected by one half of the opponents, targets without the bias of that)."""
    selection: str
    """extremes, all_pairs or top_vs_random, see selection.py."""
    seed: int
    """Of top_vs_random; else 0."""
    gate: GateIdentity | None
    """Select by win rates that are gated so; null: by ungated ones."""
    require_head_to_head: bool
    capped: str
    """keep or drop pairs with a response that hit max_tokens."""

    def __post_init__(self) -> None:
        _check_win_rate(self.win_rate)
        if self.selection not in ("extremes", "all_pairs", "top_vs_random"):
            raise ConfigError(f"selection.by={self.selection}: choose extremes, all_pairs or top_vs_random.")
        if self.gate and self.gate.scope == "pair":
            raise ConfigError(
                "selection.values=gated with gate.scope=pair: that scope needs the pair to gate by; "
                "use pairwise or row_mean, or selection.values=win_rates."
            )
        if self.gate and self.gate.name == "rescaled":
            raise ConfigError(
                "selection.values=gated with gate=rescaled: what it shrinks by is known once pairs are selected; "
                "use selection.values=win_rates."
            )
        if self.capped not in ("keep", "drop"):
            raise ConfigError(f"selection.capped={self.capped}: choose keep or drop.")


@dataclass(frozen=True, kw_only=True)
class ImportPairsIdentity:
    """Input: `samples`, imported with preferences. The file says P, chosen and rejected: there is nothing to choose."""


@dataclass(frozen=True, kw_only=True)
class GateIdentity:
    """Inputs of calibrate: `pairs`, and `embeddings` unless the gate is off. Defaults stand where a kind reads none."""

    name: str
    """off, linear, power, or a control: permuted (g matrices shuffled across prompts of equal K), rescaled (every
    target shrunk by the one factor by which the gate shrinks them in sum)."""
    exponent: float = 1.0
    """Of g; 1 for linear."""
    floor: float = 0.0
    floor_quantile: float | None = None
    """When set, floor is this quantile of all off-diagonal similarities of the iteration."""
    ceil: float = 1.0
    ceil_quantile: float | None = None
    scope: str = "pairwise"
    """pairwise, pair or row_mean."""
    seed: int
    """Of the permuted control."""
    dealt_over: str
    """Whose g the control shuffles: that of the `pairs` kept, or of all `prompts` where the gate selects the pairs."""

    def __post_init__(self) -> None:
        if self.name not in ("off", "linear", "power", "permuted", "rescaled"):
            raise ConfigError(f"gate.name={self.name}: choose off, linear, power, permuted or rescaled.")
        if not self.exponent > 0 or (self.name == "linear" and self.exponent != 1):
            raise ConfigError(f"gate.exponent={self.exponent}: use a number above 0, with gate=power.")
        if self.scope not in ("pairwise", "pair", "row_mean"):
            raise ConfigError(f"gate.scope={self.scope}: choose pairwise, pair or row_mean.")
        absolute = self.floor_quantile is None and self.ceil_quantile is None
        if absolute and not self.floor < self.ceil:
            raise ConfigError(f"gate.floor={self.floor} must be below gate.ceil={self.ceil}.")
        for key, quantile in (("floor_quantile", self.floor_quantile), ("ceil_quantile", self.ceil_quantile)):
            if quantile is not None and not 0 <= quantile <= 1:
                raise ConfigError(f"gate.{key}={quantile}: use a number from 0 to 1, or null.")


@dataclass(frozen=True, kw_only=True)
class PoolRuntime:
    """Actors of score, embed and reference; changes at most rounding."""

    actors: int
    cpus: int
    gpus: int
    max_failures: int
    """Times that a shard is done again after its worker failed, before the step fails."""


@dataclass(frozen=True, kw_only=True)
class ScoreRuntime(PoolRuntime):
    urls: dict[str, tuple[str, ...]]
    """Of an oracle on servers, by member; `` is the oracle itself."""
