"""Configuration of the train stage: adapter, repulsion, reward calibration, trainer, trackers, and the settings of its
steps: reference, logprobs, train. No heavy import. The objectives' are in objectives/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sparring.stages.errors import ConfigError, TrainingFault
from sparring.stages.fields import (
    ELSEWHERE,
    NO_BOOL,
    RUNTIME,
    ByReference,
    Count,
    Fraction,
    Hashed,
    Integer,
    NonNegative,
    Positive,
    Rate,
    Scale,
    Share,
    Size,
    Text,
)
from sparring.stages.hardware import HardwareConfig
from sparring.stages.step import StepSpec
from sparring.stages.train import deepspeed_keys
from sparring.stages.train.objectives import ObjectiveConfig

REFERENCE = StepSpec(
    kind="reference",
    version=5,
    worker="sparring.stages.train.steps.reference:Reference",
    shards="sparring.stages.train.steps.reference:shards",
    finish="sparring.stages.train.steps.reference:finish",
    pool="annotators",
)
LOGPROBS = StepSpec(
    kind="logprobs",
    version=1,
    worker="sparring.stages.train.steps.logprobs:Scorer",
    shards="sparring.stages.train.steps.logprobs:shards",
    finish="sparring.stages.train.steps.logprobs:finish",
    pool="annotators",
)
TRAIN = StepSpec(
    kind="train",
    version=5,
    run="sparring.stages.train.steps.train:run",
    modules="sparring.stages.train.objectives:modules",
)

SINKS = ("tensorboard", "wandb", "mlflow", "trackio")
Dtype = Literal["float32", "bfloat16"]
Schedule = Literal["linear", "cosine", "constant"]
Truncation = Literal["drop", "keep_end"]
Pooling = Literal["mean", "last"]
LAST = -1
"""Of `repulsion.layer`: the last hidden state, after the final norm."""


def check_layer(layer: int, count: int) -> None:
    """ConfigError where a policy of `count` decoder layers has no layer of that index."""
    if not -count <= layer < count:
        raise ConfigError(
            f"repulsion.layer={layer}: the policy has {count} decoder layers; use 0 to {count - 1}, "
            f"-2 to -{count} from the end, or -1 for the last hidden state after the final norm."
        )


@dataclass(frozen=True, kw_only=True)
class OffRepulsion:
    """The distance of chosen and rejected states is recorded all the same."""

    name: Literal["off"]
    pooling: Pooling
    """mean over the response's tokens without end-of-turn, or last content token."""


@dataclass(frozen=True, kw_only=True)
class ActiveRepulsion:
    """Of every repulsion that is not off."""

    weight: NonNegative
    """lambda."""
    pooling: Pooling
    layer: Integer
    """The layer of the states: -1 the last hidden state, after the final norm; k the output of decoder layer k, from 0;
    -2 that of the last but one, and so on."""


@dataclass(frozen=True, kw_only=True)
class PlainRepulsion(ActiveRepulsion):
    name: Literal["neg_sq", "cosine", "log"]


@dataclass(frozen=True, kw_only=True)
class HingeRepulsion(ActiveRepulsion):
    name: Literal["hinge"]
    margin: Positive


RepulsionConfig = Annotated[OffRepulsion | PlainRepulsion | HingeRepulsion, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True)
class OffCalibration:
    """The objective's own incentives."""

    name: Literal["off"]


@dataclass(frozen=True, kw_only=True)
class RewardCalibrationConfig:
    """See loss/reward_calibration.py."""

    name: Literal["reward"]
    ema: Fraction
    """Of the running means of the logs: what a new step leaves of the old ones."""
    max_log_delta: Positive
    """Bound of |log delta|."""


CalibrationConfig = Annotated[OffCalibration | RewardCalibrationConfig, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True)
class OffAdapter:
    """All weights are trained."""

    name: Literal["off"]
    four_bit: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """W + alpha/rank B A in the linear layers, without dropout."""

    name: Literal["lora", "qlora"]
    """lora: B and A on frozen weights; qlora: on frozen weights in 4 bits (nf4)."""
    rank: Count
    alpha: Scale
    """Any that leaves alpha / rank neither 0 nor infinite in fp32."""
    targets: tuple[Text, ...]
    """Names of layers, such as q_proj; empty: all linear layers but the head."""

    @property
    def four_bit(self) -> bool:
        """Whether W is in 4 bits."""
        return self.name == "qlora"


AdapterConfig = Annotated[OffAdapter | Adapter, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the trainer computes the log-prob of a response, and so the steps `reference` and `logprobs`."""

    dtype: Dtype
    """Of the computation; master weights are fp32."""
    max_length: Count
    """Longest prompt + response in tokens."""
    truncate: Truncation
    """Of what is longer: drop the pair, or keep_end: cut the response before its end-of-turn token."""


def _other_than_linear(trainer: Any) -> str | None:
    return None if trainer.schedule == "linear" else str(trainer.schedule)


def _lossy(trainer: Any) -> dict[str, Any] | None:
    return deepspeed_keys.lossy(trainer.deepspeed)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Scoring):
    """Of training."""

    optimizer: Literal["rmsprop", "adamw", "adamw_8bit"]
    """RMSProp is the published one; adamw_8bit keeps its states in 8 bits."""
    lr: Rate
    """Its peak, at the end of the warm-up."""
    schedule: Annotated[Schedule, Hashed("unless it is linear", _other_than_linear)] = "linear"
    """What lr does after the warm-up: fall to 0 in a line or as half a cosine, or stay; published runs are linear."""
    weight_decay: Share
    """Of matrices, not of norms and biases; the published runs have none."""
    adapter_lr: Annotated[
        Rate, ByReference("with adapter=lora or adapter=qlora, where trainer.lr is not set"), ELSEWHERE
    ]
    """What adapter=lora and qlora set lr to."""
    adapter: AdapterConfig
    warmup_ratio: Fraction
    """Share of the optimizer steps over which lr rises."""
    epochs: Count
    """Times that every pair is trained on."""
    global_batch: Count
    """Pairs per optimizer step."""
    max_grad_norm: Positive
    """A longer gradient is scaled down to it."""
    min_steps: Annotated[int, Field(ge=8, description="fewer optimizer steps teach nothing"), NO_BOOL]
    """Fewer optimizer steps than this are refused: such a loop learns nothing."""
    publish_dtype: Dtype
    """Of the published folder: float32 keeps what small steps changed."""
    checkpoint_steps: Annotated[Count, RUNTIME]
    """Optimizer steps from one checkpoint to the next."""
    gradient_checkpointing: Annotated[bool, RUNTIME]
    """Compute activations again in the backward pass: less memory, a third more time."""
    band_every: Annotated[Size, RUNTIME]
    """Optimizer steps from one measurement of the disentanglement band to the next; 0: never."""
    deepspeed: Annotated[
        dict[str, Any],
        Hashed("but what changes its speed alone", _lossy),
    ]
    """Passed on to DeepSpeed, over our own: +trainer.deepspeed.zero_optimization.overlap_comm=true. What changes more
    than the order of sums is hashed."""

    def __post_init__(self) -> None:
        """Refuse keys that DeepSpeed does not have, or that have a key of their own."""
        deepspeed_keys.check(self.deepspeed)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Runtime only. In no fingerprint."""

    sinks: tuple[str, ...]
    """Trackers that get the record of every optimizer step, beside the event stream: one or more of SINKS."""

    def __post_init__(self) -> None:
        """Refuse trackers that are not known, or not installed."""
        for sink in self.sinks:
            if sink not in SINKS:
                raise ConfigError(f"tracking.sinks: {sink} is not known; choose of {', '.join(SINKS)}.")
            if find_spec(sink) is None:
                raise ConfigError(f"tracking.sinks: {sink} is not installed; pip install {sink}, or leave it out.")


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """Inputs: `samples`, `pairs`, `policy`; of `logprobs`, which scores every response, no `pairs`."""

    trainer: Scoring
    four_bit: bool
    """The policy's linear layers in 4 bits, as `train` holds them under adapter=qlora: h is 0 before its first step."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Inputs: `prompts`, `samples`, `targets`, `policy`, and as the objective needs them `reference` (log-probs under
    the policy that sampled) and `reference_base` (under the base)."""

    objective: ObjectiveConfig
    repulsion: RepulsionConfig
    calibration: CalibrationConfig
    trainer: TrainerConfig
    seed: int
    hardware: Annotated[HardwareConfig, RUNTIME]
    tracking: Annotated[TrackingConfig, RUNTIME]
    tracked_as: Annotated[str, RUNTIME]
    """What the trackers call this training: run/arm/iter-01."""

    def share(self, workers: int) -> int:
        """Return the pairs of an optimizer step that each of the workers gets."""
        size = self.trainer.global_batch
        if size % workers:
            raise ConfigError(
                f"trainer.global_batch={size} is not a multiple of hardware.workers={workers}; change one."
            )
        return size // workers

    def micro_pairs(self, workers: int) -> int:
        """Return the pairs per forward pass: the largest divisor of a worker's share that is at most `micro_batch`."""
        most, share = self.hardware.micro_batch, self.share(workers)
        assert most != "auto"
        return max(n for n in range(1, min(most, share) + 1) if share % n == 0)

    def with_micro_batch(self, pairs: int) -> TrainSettings:
        """Return these settings with so many pairs per forward pass."""
        return replace(self, hardware=replace(self.hardware, micro_batch=pairs))


def require_packages(optimizer: str, adapter: AdapterConfig) -> None:
    """Refuse what the installed packages cannot do."""
    wanted = [
        ("bitsandbytes", "trainer.optimizer=adamw_8bit", optimizer == "adamw_8bit", "trainer.optimizer=adamw"),
        ("bitsandbytes", "adapter=qlora", adapter.four_bit, "adapter=lora"),
        ("peft", f"adapter={adapter.name}", adapter.name != "off", "adapter=off"),
    ]
    for package, key, needed, other in wanted:
        if needed and find_spec(package) is None:
            raise ConfigError(
                f"{key} needs the package {package}, which is not installed; run `make setup`, or {other}."
            )


def optimizer_steps(pairs: int, epochs: int, global_batch: int) -> int:
    """Return the number of optimizer steps; the last global batch of an epoch is filled up."""
    return epochs * -(-pairs // global_batch)


def refuse_too_few_steps(pairs: int, trainer: TrainerConfig) -> None:
    """TrainingFault when `pairs` make too few optimizer steps to learn anything."""
    steps = optimizer_steps(pairs, trainer.epochs, trainer.global_batch)
    if steps < trainer.min_steps:
        raise TrainingFault(
            f"too few optimizer steps: {pairs} pairs were left, {steps} steps of {trainer.global_batch} pairs, "
            f"at least {trainer.min_steps} are needed to learn anything. Raise prompts.per_iteration or "
            "trainer.epochs, or lower trainer.global_batch."
        )


ON_HEAD = ("rho", "r_star", "in_band", "rho_negative")
"""Figures that are measured on the output head alone."""


def tracked_name(name: str) -> str:
    """Return the name of a figure in trackers: `head_` before what is measured on the output head."""
    return f"head_{name}" if name in ON_HEAD else name
