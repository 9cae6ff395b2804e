"""What a user may write: the dataclasses of conf/, and what they refuse. Composing them is pipeline/config.py.

The identity of a step lives beside the step (stages/*/config.py), a group that one room alone reads in that room
(pipeline/diagnostics/config.py, pipeline/report/config.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sparring.pipeline.diagnostics.config import DiagnosticsConfig
from sparring.pipeline.report.config import PublishedConfig
from sparring.stages.annotate import oracles
from sparring.stages.errors import ConfigError
from sparring.stages.fields import (
    NO_BOOL,
    ByReference,
    Count,
    Fraction,
    Integer,
    NonNegative,
    OnlyIf,
    Options,
    Place,
    Positive,
    Rate,
    Scale,
    Seconds,
    Share,
    Size,
    Text,
)
from sparring.stages.sample.config import MOST_RESPONSES
from sparring.stages.train.objective_config import ObjectiveIdentity

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ARTIFACT = r"{}-[0-9a-f]{{8}}"
SINKS = ("tensorboard", "wandb", "mlflow", "trackio")


SampleDtype = Literal["float32", "bfloat16", "float16", "auto"]
TrainDtype = Literal["float32", "bfloat16"]
Pooling = Literal["mean", "last"]
StopText = Annotated[str, Field(min_length=1)]
"""An empty one would end every response at once."""
Similarity = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False), NO_BOOL]
OWN_ENGINES = "with sampler=vllm or transformers: servers have their own engines"
DATA_FILE = re.compile(r"\.(jsonl?|parquet|csv)(\.gz)?$")


def _no_path(group: Any, _: Any) -> bool:
    return group.path is None


def _from_hub(prompts: Any, _: Any) -> bool:
    return prompts.path is None and not Path(prompts.dataset).is_dir()


def _in_layout(prompts: Any, _: Any) -> bool:
    return prompts.path is None or not DATA_FILE.search(prompts.path)


def _drawn(sampler: Any, _: Any) -> bool:
    return bool(sampler.temperature > 0)


def _loads(judge: Any, _: Any) -> bool:
    return "judge" in oracles.options_of(judge.kind).inputs and not judge.urls


def _loads_repo(judge: Any, config: Any) -> bool:
    return _loads(judge, config) and judge.path is None


def _has_repo(judge: Any, config: Any) -> bool:
    return _loads_repo(judge, config) and judge.repo is not None


def _asks(judge: Any, _: Any) -> bool:
    return bool(oracles.options_of(judge.kind).servers)


def _gated(_: Any, config: Any) -> bool:
    return bool(config.gate.name != "off")


def _options(judge: Any) -> Any:
    return oracles.options(judge.kind, judge.options)


def _mixes(judge: Any, _: Any) -> bool:
    return bool(oracles.options_of(judge.kind).mixes)


def _own_engines(_: Any, config: Any) -> bool:
    return bool(config.sampler.engine != "server")


def _vllm_on_cpu(hardware: Any, config: Any) -> bool:
    return config.sampler.engine == "vllm" and not hardware.engine_gpus


def _vllm_on_gpus(hardware: Any, config: Any) -> bool:
    return config.sampler.engine == "vllm" and bool(hardware.engine_gpus)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str
    """Folder under paths.runs."""

    def __post_init__(self) -> None:
        if not RUN_NAME.fullmatch(self.name):
            raise ConfigError(
                f"run.name={self.name}: use at most 100 letters, digits, '.', '_' and '-', a letter or digit first."
            )


@dataclass(frozen=True, kw_only=True)
class PathsConfig:
    store: Place
    runs: Place


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Of every policy."""

    name: Text
    tensor_parallel: Annotated[
        Count, ByReference("with hardware=cuda or h100x8, where hardware.engine_gpus is not set")
    ]
    """GPUs that one sampling engine needs."""
    stop: tuple[StopText, ...]
    """Control tokens that end a response, beside those the folder names."""
    dtype: Annotated[SampleDtype, ByReference("where sampler.dtype is not set")]
    """Of sampling."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedPolicy(Policy):
    source: Literal["embedded"]
    parameters: Count | None
    """How many weights it has, as its configuration says, for plans while its files are not here. In no fingerprint."""


@dataclass(frozen=True, kw_only=True)
class HubPolicy(Policy):
    source: Literal["hub"]
    path: Place | None
    """A local copy of the model; null: downloaded."""
    repo: Annotated[Text, OnlyIf(_no_path, "without policy.path, which is a local copy")]
    """owner/name on the hub."""
    revision: Annotated[Text, OnlyIf(_no_path, "without policy.path, which is a local copy")]
    """A commit; a branch is resolved to one when the run begins, and written down."""
    parameters: Annotated[Count | None, OnlyIf(_no_path, "without policy.path, whose files are counted")]
    """As that of the embedded one."""


@dataclass(frozen=True, kw_only=True)
class FolderPolicy(Policy):
    """Another model. Beside a preset its stop tokens and dtype are those of the preset's policy."""

    source: Literal["folder"]
    path: Place


PolicyConfig = Annotated[EmbeddedPolicy | HubPolicy | FolderPolicy, Field(discriminator="source")]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Of every source of prompts."""

    column: Text
    limit: Count | None
    heldout: Count | None
    """null: a fifth of the prompts, at most 64."""
    per_iteration: Count | None
    """S: slice t is rows [(t-1)*S, t*S) of the dealt order; null: cut into `slices`, or, for source=file without
    them, 64, all where there are fewer, and as many as the optimizer's steps need."""
    slices: Count | None
    """Disjoint slices of all training prompts, one an iteration; null: `per_iteration` says how large one is."""
    max_tokens: Count


@dataclass(frozen=True, kw_only=True)
class StarterPrompts(Prompts):
    source: Literal["starter"]


@dataclass(frozen=True, kw_only=True)
class FilePrompts(Prompts):
    source: Literal["file"]
    path: Place
    """A file, or a folder of them; `{slice}` in it stands for 1 .. slices."""
    split: Text | None
    """null: the only one of a folder."""


@dataclass(frozen=True, kw_only=True)
class HubPrompts(Prompts):
    source: Literal["hub"]
    path: Place | None
    """A local copy of the dataset, a folder of its layout or a file; null: downloaded. `{slice}` as in FilePrompts."""
    dataset: Annotated[Place, OnlyIf(_no_path, "without prompts.path, which is a local copy")]
    """owner/name on the hub, or a local folder of its layout; `{slice}` as in path."""
    revision: Annotated[Text, OnlyIf(_from_hub, "of a dataset of the hub; prompts.path or dataset is a local copy")]
    subset: Annotated[Text | None, OnlyIf(_in_layout, "of a folder of the hub's layout; prompts.path is a file")]
    """The hub's configuration name."""
    split: Annotated[Text, OnlyIf(_in_layout, "of a folder of the hub's layout; prompts.path is a file")]


PromptsConfig = Annotated[StarterPrompts | FilePrompts | HubPrompts, Field(discriminator="source")]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Of every sampling engine."""

    k: Annotated[int, Field(ge=2, le=MOST_RESPONSES, description="a preference needs two responses"), NO_BOOL]
    """Responses per prompt: a preference needs two; K x K scores of more than 64 are not worth their cost."""
    max_tokens: Count
    temperature: NonNegative
    top_p: Annotated[
        float, Field(gt=0, le=1, allow_inf_nan=False), NO_BOOL, OnlyIf(_drawn, "with sampler.temperature above 0")
    ]
    min_p: Annotated[Fraction, OnlyIf(_drawn, "with sampler.temperature above 0")]
    stop: tuple[StopText, ...]
    logprobs: bool
    reproducible: bool
    dtype: SampleDtype
    """Of servers: what they were started with, which no answer of theirs tells."""
    shard_rows: Count


@dataclass(frozen=True, kw_only=True)
class EngineSampler(Sampler):
    engine: Literal["vllm", "transformers"]
    engine_args: dict[str, Any]
    """Passed on to the engine; +sampler.engine_args.max_num_seqs=64."""


@dataclass(frozen=True, kw_only=True)
class ServerSampler(Sampler):
    engine: Literal["server"]
    urls: tuple[str, ...]
    """http://host:port, one or more."""


SamplerConfig = Annotated[EngineSampler | ServerSampler, Field(discriminator="engine")]


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Of the oracle and of the second judge. What a kind reads is what its Options say, see stages/annotate/oracles."""

    kind: str
    """A file of stages/annotate/oracles."""
    path: Annotated[Place | None, OnlyIf(_loads, "by a judge that is loaded from a folder, without urls")] = None
    """A folder; null: the embedded judge of this kind, or that of the hub."""
    repo: Annotated[
        Text | None, OnlyIf(_loads_repo, "by a judge that is loaded from a folder, without path and urls")
    ] = None
    """owner/name on the hub."""
    revision: Annotated[Text | None, OnlyIf(_has_repo, "beside repo, without path and urls")] = None
    """A commit; a branch is resolved to one when the run begins, and written down."""
    options: Annotated[dict[str, Any], Options(_options, oracles.all_options)] = field(default_factory=dict)
    """Of this kind; in an artifact's identity."""
    urls: Annotated[tuple[str, ...], OnlyIf(_asks, "by a judge that asks servers, such as llm")] = ()
    """Servers that run it, of a kind that asks servers: http://host:port."""
    members: Annotated[dict[str, JudgeConfig], OnlyIf(_mixes, "by an ensemble")] = field(default_factory=dict)
    """Of an ensemble."""


@dataclass(frozen=True, kw_only=True)
class OracleConfig(JudgeConfig):
    opponents: Annotated[int, Field(ge=2), NO_BOOL] | None
    """Responses that each response is compared with, fewer than sampler.k; null: all."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Of every encoder."""

    window: Count
    """Tokens of one pass."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedEncoder(Encoder):
    source: Literal["embedded"]


@dataclass(frozen=True, kw_only=True)
class HubEncoder(Encoder):
    source: Literal["hub"]
    path: Place | None
    """A local copy of the model; null: downloaded."""
    repo: Annotated[Text, OnlyIf(_no_path, "without encoder.path, which is a local copy")]
    revision: Annotated[Text, OnlyIf(_no_path, "without encoder.path, which is a local copy")]


@dataclass(frozen=True, kw_only=True)
class FolderEncoder(Encoder):
    """A model of sentence-transformers."""

    source: Literal["folder"]
    path: Place


EncoderConfig = Annotated[EmbeddedEncoder | HubEncoder | FolderEncoder, Field(discriminator="source")]


@dataclass(frozen=True, kw_only=True)
class OffGate:
    name: Literal["off"]


@dataclass(frozen=True, kw_only=True)
class OpenGate:
    """Of every gate that is not off."""

    floor: Annotated[Similarity, OnlyIf(lambda gate, _: gate.floor_quantile is None, "without gate.floor_quantile")]
    floor_quantile: Share | None
    """When set, floor is this quantile of all off-diagonal similarities of the iteration."""
    ceil: Annotated[Similarity, OnlyIf(lambda gate, _: gate.ceil_quantile is None, "without gate.ceil_quantile")]
    ceil_quantile: Share | None
    scope: Literal["pairwise", "pair", "row_mean"]

    def __post_init__(self) -> None:
        low, high = self.floor_quantile, self.ceil_quantile
        if low is None and high is None and not self.floor < self.ceil:
            raise ConfigError(f"gate.floor={self.floor} must be below gate.ceil={self.ceil}.")
        if low is not None and high is not None and not low < high:
            raise ConfigError(f"gate.floor_quantile={low} must be below gate.ceil_quantile={high}.")


@dataclass(frozen=True, kw_only=True)
class LinearGate(OpenGate):
    name: Literal["linear"]


@dataclass(frozen=True, kw_only=True)
class PowerGate(OpenGate):
    """Also of the controls, whose exponent is that of the gate which they control."""

    name: Literal["power", "permuted", "rescaled"]
    exponent: Positive


GateConfig = Annotated[OffGate | LinearGate | PowerGate, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True)
class OffRepulsion:
    """The distance of chosen and rejected states is recorded all the same."""

    name: Literal["off"]
    pooling: Pooling


@dataclass(frozen=True, kw_only=True)
class Repulsion:
    """Of every repulsion that is not off."""

    weight: NonNegative
    """lambda."""
    pooling: Pooling
    layer: Integer
    """As that of RepulsionIdentity."""


@dataclass(frozen=True, kw_only=True)
class PlainRepulsion(Repulsion):
    name: Literal["neg_sq", "cosine", "log"]


@dataclass(frozen=True, kw_only=True)
class HingeRepulsion(Repulsion):
    name: Literal["hinge"]
    margin: Positive


RepulsionConfig = Annotated[OffRepulsion | PlainRepulsion | HingeRepulsion, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True)
class OffCalibration:
    name: Literal["off"]


@dataclass(frozen=True, kw_only=True)
class RewardCalibration:
    name: Literal["reward"]
    ema: Fraction
    """Of the running means of the logs: what a new step leaves of the old ones."""
    max_log_delta: Positive
    """Bound of |log delta|."""


CalibrationConfig = Annotated[OffCalibration | RewardCalibration, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True)
class OffAdapter:
    name: Literal["off"]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    name: Literal["lora", "qlora"]
    rank: Count
    alpha: Scale
    """Any that leaves alpha / rank neither 0 nor infinite in fp32."""
    targets: tuple[Text, ...]
    """Names of layers, such as q_proj; empty: all linear layers but the head."""


AdapterConfig = Annotated[OffAdapter | Adapter, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    optimizer: Literal["rmsprop", "adamw", "adamw_8bit"]
    lr: Rate
    adapter_lr: Annotated[Rate, ByReference("with adapter=lora or adapter=qlora, where trainer.lr is not set")]
    """What adapter=lora and qlora set lr to."""
    adapter: AdapterConfig
    warmup_ratio: Fraction
    epochs: Count
    global_batch: Count
    max_grad_norm: Positive
    max_length: Count
    truncate: Literal["drop", "keep_end"]
    """Of a pair longer than max_length."""
    min_steps: Annotated[int, Field(ge=8, description="fewer optimizer steps teach nothing"), NO_BOOL]
    dtype: TrainDtype
    publish_dtype: TrainDtype
    checkpoint_steps: Count
    gradient_checkpointing: bool
    band_every: Size
    """Optimizer steps from one measurement of the disentanglement band to the next; 0: never."""


@dataclass(frozen=True, kw_only=True)
class ExpectConfig:
    """What `sparring plan` reckons with before the store holds a measured step."""

    sample_tokens_per_s: Positive
    reference_tokens_per_s: Positive
    train_tokens_per_s: Positive
    score_duels_per_s: Positive | None
    """Ordered pairs of responses that an oracle that is no embedded one judges; null: they are not reckoned."""
    embed_responses_per_s: Positive
    parameters: Count | None
    """Of the policy that the tokens/s are of: those of another one are in inverse proportion; null: they are not."""
    start_s: NonNegative
    basis: str
    """Where these numbers come from, said beside what is reckoned with them."""


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Runtime only: where things run. In no fingerprint."""

    name: str
    engines: Annotated[Count | None, OnlyIf(_own_engines, OWN_ENGINES)]
    """null: as many as the GPUs hold, or the cores at cores_per_engine."""
    cores_per_engine: Annotated[Count | None, OnlyIf(_own_engines, OWN_ENGINES)]
    """null: the machine's cores are shared by the engines."""
    engine_gpus: Size
    """The policy's tensor_parallel; 0 on the CPU."""
    kv_cache_gb: Annotated[Count, OnlyIf(_vllm_on_cpu, "with sampler=vllm without GPUs")] = 2
    gpu_memory: Annotated[
        float, Field(gt=0, le=1, allow_inf_nan=False), NO_BOOL, OnlyIf(_vllm_on_gpus, "with sampler=vllm on GPUs")
    ] = 0.9
    annotators: Count
    annotator_cpus: Count | None
    annotator_gpus: Size
    workers: Count
    worker_cpus: Count | None
    worker_gpus: Size
    micro_batch: Count | Literal["auto"]
    """Pairs per forward pass of a training worker; auto measures when training begins."""
    offload: Literal["none", "optimizer", "all"]
    """What ZeRO-3 keeps in the host's memory."""
    max_failures: Size
    shard_deadline_s: Seconds | None
    """A shard of sampling that takes longer has its engine ended and is done again; null: ten times what it may take
    by `expect`."""
    usd_per_hour: NonNegative | None
    """What all of it costs an hour, for the plan's bill; null: hours alone."""
    expect: ExpectConfig

    @property
    def gpus(self) -> int:
        """GPUs that it keeps busy at once, where it says how many engines there are."""
        engines = (self.engines or 1) * self.engine_gpus
        return max(engines, self.annotators * self.annotator_gpus, self.workers * self.worker_gpus)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Runtime only. In no fingerprint."""

    sinks: tuple[str, ...]
    """Trackers that get the record of every optimizer step, beside the event stream: one or more of SINKS."""

    def __post_init__(self) -> None:
        for sink in self.sinks:
            if sink not in SINKS:
                raise ConfigError(f"tracking.sinks: {sink} is not known; choose of {', '.join(SINKS)}.")
            if find_spec(sink) is None:
                raise ConfigError(f"tracking.sinks: {sink} is not installed; pip install {sink}, or leave it out.")


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    by: Literal["extremes", "all_pairs", "top_vs_random"]
    values: Annotated[Literal["win_rates", "gated"], OnlyIf(_gated, "with a gate that is not off")]
    """By what the responses of a prompt are ordered."""
    require_head_to_head: bool
    capped: Literal["keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    k: Annotated[int, Field(ge=1, le=MOST_RESPONSES), NO_BOOL]
    """Responses per held-out prompt."""
    shard_rows: Count
    """Held-out prompts per shard."""
    resamples: Annotated[int, Field(ge=100, le=100_000), NO_BOOL]
    confidence: Annotated[float, Field(gt=0.5, lt=1, allow_inf_nan=False), NO_BOOL]
    crossplay: bool
    """From iteration 2 on every policy against every other one, by both judges. Adds steps; in no fingerprint."""
    kl: bool
    """Measure KL to the previous policy and to the base on the held-out responses. Adds steps; in no fingerprint."""
    best_of: Annotated[int, Field(ge=1, le=MOST_RESPONSES), NO_BOOL]
    """Responses to a held-out prompt of which the oracle's best is judged as well; 1: no such suite. Adds steps."""


@dataclass(frozen=True, kw_only=True)
class EntryConfig:
    """Artifacts of the store that iteration 1 takes in place of its own: what `sparring import` made."""

    samples: Annotated[
        str | None, OnlyIf(lambda entry, _: entry.pairs is None, "without entry.pairs, which brings its samples along")
    ]
    """sample-1f2e3d4c; null samples."""
    pairs: str | None
    """pairs-1f2e3d4c, which brings its samples along; null scores and pairs them."""

    def __post_init__(self) -> None:
        for key, kind, name in (("samples", "sample", self.samples), ("pairs", "pairs", self.pairs)):
            if name is not None and not re.fullmatch(ARTIFACT.format(kind), name):
                raise ConfigError(f"entry.{key}={name}: name an artifact of the store, such as {kind}-1f2e3d4c.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    iterations: Annotated[int, Field(ge=1, le=1000), NO_BOOL]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1), NO_BOOL]
    run: RunConfig
    paths: PathsConfig
    policy: PolicyConfig
    prompts: PromptsConfig
    sampler: SamplerConfig
    oracle: OracleConfig
    judge: JudgeConfig
    encoder: EncoderConfig
    gate: GateConfig
    objective: Annotated[ObjectiveIdentity, Field(discriminator="name")]
    repulsion: RepulsionConfig
    calibration: CalibrationConfig
    trainer: TrainerConfig
    hardware: HardwareConfig
    win_rate: Literal["matrix", "aggregate_score", "cross_fit"]
    selection: SelectionConfig
    evaluate: EvaluateConfig
    tracking: TrackingConfig
    diagnostics: DiagnosticsConfig
    entry: EntryConfig
    published: PublishedConfig | None = None
    """Of a preset that has published results."""


def judges_of(key: str, judge: JudgeConfig) -> Iterable[tuple[str, JudgeConfig]]:
    """Yield a judge and its members, each with its key."""
    yield key, judge
    for name, member in judge.members.items():
        yield from judges_of(f"{key}.members.{name}", member)
