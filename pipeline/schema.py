"""What a user may write: the dataclasses of conf/, and what they refuse. Composing them is pipeline/config.py.

The identity of a step lives beside the step (stages/*/config.py), a group that one room alone reads in that room
(pipeline/diagnostics/config.py, pipeline/report/config.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.diagnostics.config import DiagnosticsConfig
from pipeline.errors import ConfigError
from pipeline.report.config import PublishedConfig
from stages.train.config import (
    AdapterIdentity,
    CalibrationIdentity,
    ObjectiveIdentity,
    RepulsionIdentity,
)

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ARTIFACT = r"{}-[0-9a-f]{{8}}"
SINKS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str
    """Folder under paths.runs."""

    def __post_init__(self) -> None:
        if not RUN_NAME.fullmatch(self.name):
            raise ConfigError(f"run.name={self.name}: use letters, digits, '.', '_' and '-' only.")


@dataclass(frozen=True, kw_only=True)
class PathsConfig:
    store: str
    runs: str


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    source: str
    """embedded, hub or folder."""
    name: str
    path: str | None
    """The folder, for source=folder."""
    repo: str | None
    """owner/name on the hub, for source=hub."""
    revision: str | None
    """A commit; a branch is resolved to one when the run begins, and written down."""
    tensor_parallel: int
    """GPUs that one sampling engine needs."""
    stop: tuple[str, ...]
    """Control tokens that end a response, beside those the folder names."""
    dtype: str
    """Of sampling."""
    parameters: int | None
    """How many weights it has, as its configuration says, for plans while its files are not here. In no fingerprint."""


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    source: str
    """starter, file or hub."""
    path: str | None
    """A file, for source=file; `{slice}` in it stands for 1 .. slices."""
    dataset: str | None
    """owner/name on the hub or a local folder of its layout, for source=hub; `{slice}` as in path."""
    revision: str | None
    subset: str | None
    """The hub's configuration name."""
    split: str | None
    """null: the only one of a folder, for source=file."""
    column: str
    limit: int | None
    heldout: int | None
    """null, for source=file: a fifth of the file, at most 64."""
    per_iteration: int | None
    """S: slice t is rows [(t-1)*S, t*S) of the dealt order; null: cut into `slices`, or, for source=file without
    them, 64, all where there are fewer, and as many as the optimizer's steps need."""
    slices: int | None
    """Disjoint slices of all training prompts, one an iteration; null: `per_iteration` says how large one is."""
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    engine: str
    k: int
    max_tokens: int
    temperature: float
    top_p: float
    min_p: float
    stop: tuple[str, ...]
    logprobs: bool
    reproducible: bool
    dtype: str
    shard_rows: int
    engine_args: dict[str, Any]
    """Passed on to the engine; +sampler.engine_args.max_num_seqs=64."""
    urls: tuple[str, ...]
    """Of engine=server: http://host:port, one or more."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Of the oracle and of the second judge."""

    kind: str
    """A file of stages/annotate/oracles."""
    path: str | None
    """A folder; null: the embedded judge of this kind, or that of the hub."""
    repo: str | None
    """owner/name on the hub."""
    revision: str | None
    """A commit; a branch is resolved to one when the run begins, and written down."""
    options: dict[str, Any]
    """Of this kind; in an artifact's identity."""
    urls: tuple[str, ...]
    """Servers that run it, of a kind that asks servers: http://host:port."""
    members: dict[str, JudgeConfig]
    """Of an ensemble."""


@dataclass(frozen=True, kw_only=True)
class OracleConfig(JudgeConfig):
    opponents: int | None
    """Responses that each response is compared with; null: all."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    source: str
    """embedded, hub or folder: a model of sentence-transformers."""
    path: str | None
    repo: str | None
    revision: str | None
    window: int
    """Tokens of one pass."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    name: str
    exponent: float
    floor: float
    floor_quantile: float | None
    ceil: float
    ceil_quantile: float | None
    scope: str


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    optimizer: str
    lr: float
    adapter_lr: float
    """What adapter=lora and qlora set lr to."""
    adapter: AdapterIdentity
    warmup_ratio: float
    epochs: int
    global_batch: int
    max_grad_norm: float
    max_length: int
    truncate: str
    """drop or keep_end: of a pair longer than max_length."""
    min_steps: int
    dtype: str
    publish_dtype: str
    checkpoint_steps: int
    gradient_checkpointing: bool
    band_every: int
    """Optimizer steps from one measurement of the disentanglement band to the next; 0: never."""


@dataclass(frozen=True, kw_only=True)
class ExpectConfig:
    """What `sparring plan` reckons with before the store holds a measured step."""

    sample_tokens_per_s: float
    reference_tokens_per_s: float
    train_tokens_per_s: float
    score_duels_per_s: float | None
    """Ordered pairs of responses that an oracle that is no embedded one judges; null: they are not reckoned."""
    embed_responses_per_s: float
    parameters: int | None
    """Of the policy that the tokens/s are of: those of another one are in inverse proportion; null: they are not."""
    start_s: float
    basis: str
    """Where these numbers come from, said beside what is reckoned with them."""


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Runtime only: where things run. In no fingerprint."""

    name: str
    engines: int | None
    """null: as many as the GPUs hold, or the cores at cores_per_engine."""
    cores_per_engine: int | None
    """null: the machine's cores are shared by the engines."""
    engine_gpus: int
    """The policy's tensor_parallel; 0 on the CPU."""
    kv_cache_gb: int
    gpu_memory: float
    annotators: int
    annotator_cpus: int | None
    annotator_gpus: int
    workers: int
    worker_cpus: int | None
    worker_gpus: int
    micro_batch: int | Literal["auto"]
    """Pairs per forward pass of a training worker; auto measures when training begins."""
    offload: str
    """none, optimizer or all: what ZeRO-3 keeps in the host's memory."""
    max_failures: int
    shard_deadline_s: float | None
    """A shard of sampling that takes longer has its engine ended and is done again; null: ten times what it may take
    by `expect`."""
    usd_per_hour: float | None
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
    by: str
    values: str
    """win_rates or gated: by what the responses of a prompt are ordered."""
    require_head_to_head: bool
    capped: str


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    k: int
    """Responses per held-out prompt."""
    shard_rows: int
    """Held-out prompts per shard."""
    resamples: int
    confidence: float
    crossplay: bool
    """From iteration 2 on every policy against every other one, by both judges. Adds steps; in no fingerprint."""
    kl: bool
    """Measure KL to the previous policy and to the base on the held-out responses. Adds steps; in no fingerprint."""
    best_of: int
    """Responses to a held-out prompt of which the oracle's best is judged as well; 1: no such suite. Adds steps."""

    def __post_init__(self) -> None:
        counts = min(self.k, self.shard_rows, self.best_of)
        if counts < 1 or self.resamples < 100 or not 0.5 < self.confidence < 1:
            raise ConfigError(
                "evaluate: k, shard_rows and best_of must be >= 1, resamples >= 100 and confidence in (0.5, 1)."
            )


@dataclass(frozen=True, kw_only=True)
class EntryConfig:
    """Artifacts of the store that iteration 1 takes in place of its own: what `sparring import` made."""

    samples: str | None
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

    iterations: int
    seed: int
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
    repulsion: RepulsionIdentity
    calibration: CalibrationIdentity
    trainer: TrainerConfig
    hardware: HardwareConfig
    win_rate: str
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
