"""Configuration of the train stage: reference log-probs and the trainer. No heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from sparring.stages.errors import ConfigError, TrainingFault
from sparring.stages.step import StepSpec
from sparring.stages.train.objective_config import ObjectiveIdentity, objective_from
from sparring.stages.train.truncate import TRUNCATIONS

REFERENCE = StepSpec(
    kind="reference",
    version=5,
    worker="sparring.stages.train.reference:Reference",
    shards="sparring.stages.train.reference:shards",
    finish="sparring.stages.train.reference:finish",
    pool="annotators",
)
LOGPROBS = StepSpec(
    kind="logprobs",
    version=1,
    worker="sparring.stages.train.logprobs:Scorer",
    shards="sparring.stages.train.logprobs:shards",
    finish="sparring.stages.train.logprobs:finish",
    pool="annotators",
)
TRAIN = StepSpec(kind="train", version=5, run="sparring.stages.train.stage:run")

DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("rmsprop", "adamw", "adamw_8bit")
ADAPTERS = ("off", "lora", "qlora")
OFFLOADS = ("none", "optimizer", "all")
REPULSIONS = ("off", "hinge", "neg_sq", "cosine", "log")
POOLINGS = ("mean", "last")
CALIBRATIONS = ("off", "reward")


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}={value}: choose one of {', '.join(choices)}.")


def require_packages(optimizer: str, adapter: AdapterIdentity) -> None:
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


@dataclass(frozen=True, kw_only=True)
class ReferenceIdentity:
    """Inputs: `samples`, `pairs`, `policy`; of `logprobs`, which scores every response, no `pairs`."""

    dtype: str
    max_length: int
    """Longest prompt + response in tokens."""
    truncate: str
    """Of what is longer: drop the pair, or keep_end: cut the response before its end-of-turn token."""
    four_bit: bool
    """The policy's linear layers in 4 bits, as `train` holds them under adapter=qlora: h is 0 before its first step."""

    def __post_init__(self) -> None:
        _one_of("trainer.dtype", self.dtype, DTYPES)
        _one_of("trainer.truncate", self.truncate, TRUNCATIONS)


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
class RepulsionIdentity:
    """Which latent repulsion. Defaults stand where a kind reads none."""

    name: str
    """off, hinge, neg_sq, cosine or log."""
    weight: float = 0.0
    """lambda."""
    margin: float = 1.0
    pooling: str
    """mean over the response's tokens without end-of-turn, or last content token."""
    layer: int = LAST
    """Whose states: -1 the last hidden state, after the final norm; k the output of decoder layer k, from 0; -2 that of
    the last but one, and so on."""

    def __post_init__(self) -> None:
        _one_of("repulsion.name", self.name, REPULSIONS)
        _one_of("repulsion.pooling", self.pooling, POOLINGS)


@dataclass(frozen=True, kw_only=True)
class CalibrationIdentity:
    """Which calibration of the objective's incentives."""

    name: str
    """off or reward."""
    ema: float = 0.98
    """Of the running means of the logs: what a new step leaves of the old ones."""
    max_log_delta: float = 1.3862943611198906
    """Bound of |log delta|."""

    def __post_init__(self) -> None:
        _one_of("calibration.name", self.name, CALIBRATIONS)
        if not 0 <= self.ema < 1:
            raise ConfigError(f"calibration.ema={self.ema}: must be at least 0 and below 1; the paper uses 0.98.")
        if self.max_log_delta <= 0:
            raise ConfigError(f"calibration.max_log_delta={self.max_log_delta}: must be positive; log 4 is 1.386.")


@dataclass(frozen=True, kw_only=True)
class AdapterIdentity:
    """What is trained of the policy: all of it, or W + alpha/rank B A in its linear layers, without dropout."""

    name: str
    """off: all weights; lora: B and A on frozen weights; qlora: on frozen weights in 4 bits (nf4)."""
    rank: int = 0
    alpha: float = 0.0
    targets: tuple[str, ...] = ()
    """Names of layers, such as q_proj; empty: all linear layers but the head."""

    def __post_init__(self) -> None:
        _one_of("trainer.adapter.name", self.name, ADAPTERS)
        if self.name != "off" and (self.rank < 1 or self.alpha <= 0):
            raise ConfigError(
                f"trainer.adapter.rank={self.rank} and alpha={self.alpha}: both must be positive; rank 16 and alpha 32 "
                "are usual."
            )
        if self.name != "off" and not 1e-30 < self.alpha / self.rank < 1e30:
            raise ConfigError(
                f"trainer.adapter.alpha={self.alpha} and rank={self.rank}: alpha / rank must be a number of fp32."
            )

    @property
    def four_bit(self) -> bool:
        return self.name == "qlora"


@dataclass(frozen=True, kw_only=True)
class TrainIdentity:
    """What is trained. Inputs: `prompts`, `samples`, `targets`, `policy`, and as the objective needs them `reference`
    (log-probs under the policy that sampled) and `reference_base` (under the base)."""

    objective: ObjectiveIdentity
    repulsion: RepulsionIdentity
    calibration: CalibrationIdentity
    adapter: AdapterIdentity
    optimizer: str
    """rmsprop, adamw or adamw_8bit."""
    lr: float
    warmup_ratio: float
    epochs: int
    global_batch: int
    """Pairs per optimizer step."""
    max_grad_norm: float
    max_length: int
    truncate: str
    """As the reference's."""
    min_steps: int
    """Fewer optimizer steps than this are refused: such a loop learns nothing."""
    dtype: str
    """Of the training computation; master weights are fp32."""
    publish_dtype: str
    """Of the published folder: float32 keeps what small steps changed."""
    seed: int

    def __post_init__(self) -> None:
        if self.min_steps < 8:
            raise ConfigError(f"trainer.min_steps={self.min_steps}: fewer than 8 optimizer steps teach nothing.")
        _one_of("trainer.optimizer", self.optimizer, OPTIMIZERS)
        _one_of("trainer.dtype", self.dtype, DTYPES)
        _one_of("trainer.truncate", self.truncate, TRUNCATIONS)
        _one_of("trainer.publish_dtype", self.publish_dtype, DTYPES)
        if not 0 <= self.warmup_ratio <= 1:
            raise ConfigError(f"trainer.warmup_ratio={self.warmup_ratio}: must lie between 0 and 1.")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainIdentity:
        """Rebuild from `dataclasses.asdict`."""
        parts = {
            "objective": objective_from(fields["objective"]),
            "repulsion": RepulsionIdentity(**fields["repulsion"]),
            "calibration": CalibrationIdentity(**fields["calibration"]),
            "adapter": AdapterIdentity(**{**fields["adapter"], "targets": tuple(fields["adapter"]["targets"])}),
        }
        return cls(**{**fields, **parts})


def refuse_too_few_steps(pairs: int, identity: TrainIdentity) -> None:
    """TrainingFault when `pairs` make too few optimizer steps to learn anything."""
    steps = optimizer_steps(pairs, identity.epochs, identity.global_batch)
    if steps < identity.min_steps:
        raise TrainingFault(
            f"too few optimizer steps: {pairs} pairs were left, {steps} steps of {identity.global_batch} pairs, "
            f"at least {identity.min_steps} are needed to learn anything. Raise prompts.per_iteration or "
            "trainer.epochs, or lower trainer.global_batch."
        )


@dataclass(frozen=True, kw_only=True)
class TrainRuntime:
    """How it is trained; changes at most rounding."""

    workers: int
    cpus: int
    """CPU cores per worker."""
    gpus: int
    """GPUs per worker."""
    micro_batch: int | Literal["auto"]
    """Pairs per forward pass on one worker; auto: as many as are fast and fit, measured when training begins."""
    checkpoint_steps: int
    max_failures: int
    """Restarts of the worker group from the last checkpoint."""
    gradient_checkpointing: bool
    band_every: int
    """Optimizer steps from one measurement of the disentanglement band to the next; 0: never."""
    offload: str
    """What ZeRO-3 keeps in the host's memory: none, optimizer (its states and gradients) or all (weights too)."""
    sinks: tuple[str, ...]
    """Trackers that get every record, by the name that transformers gives them."""
    tracked_as: str
    """What the sinks call this training: run/arm/iter-01."""

    def __post_init__(self) -> None:
        _one_of("hardware.offload", self.offload, OFFLOADS)

    def share(self, global_batch: int) -> int:
        """Return the pairs of an optimizer step that one worker gets."""
        if global_batch % self.workers:
            raise ConfigError(
                f"trainer.global_batch={global_batch} is not a multiple of hardware.workers={self.workers}; change one."
            )
        return global_batch // self.workers

    def micro_pairs(self, global_batch: int) -> int:
        """Return the pairs per forward pass: the largest divisor of a worker's share that is at most `micro_batch`."""
        assert self.micro_batch != "auto"
        share = self.share(global_batch)
        return max(n for n in range(1, min(self.micro_batch, share) + 1) if share % n == 0)


ON_HEAD = ("rho", "r_star", "in_band", "rho_negative")
"""Figures that are measured on the output head alone."""


def tracked_name(name: str) -> str:
    """Return how trackers call a figure: what is measured on the output head says so."""
    return f"head_{name}" if name in ON_HEAD else name
