"""What a user may write: the groups of conf/ as one model. Composing them is this package's.

A group's model is beside the stage that owns it (stages/*/config.py, stages/hardware.py), or in the room that alone
reads it (pipeline/runs/config.py, pipeline/report/config.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from sparring.pipeline.report.config import PublishedConfig
from sparring.pipeline.runs.config import KeepConfig
from sparring.pipeline.runs.rules import DiagnosticsConfig
from sparring.pipeline.store.remote import check_address
from sparring.stages.annotate.config import (
    EncoderConfig,
    GateConfig,
    JudgeConfig,
    OracleConfig,
    SelectionConfig,
    WinRate,
)
from sparring.stages.errors import ConfigError
from sparring.stages.evaluate.config import EvaluateConfig
from sparring.stages.fields import ELSEWHERE, NO_BOOL, RUNTIME, OnlyIf, Place, Text, place
from sparring.stages.hardware import HardwareConfig
from sparring.stages.sample.config import PolicyConfig, PromptsConfig, SamplerConfig
from sparring.stages.train.config import CalibrationConfig, RepulsionConfig, TrackingConfig, TrainerConfig
from sparring.stages.train.objectives import ObjectiveConfig

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ARTIFACT = r"{}-[0-9a-f]{{8}}"


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
    store: Annotated[Text, AfterValidator(lambda text: check_address(text) if "://" in text else place(text))]
    """Folder of the artifacts, shared by all runs, or a bucket: s3://bucket/prefix."""
    runs: Place
    """Folder of what belongs to one run: events, logs, links, report."""


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

    iterations: Annotated[int, Field(ge=1, le=1000), NO_BOOL, ELSEWHERE]
    """N: rounds of sample, annotate, train, evaluate. N=1, then N=3 keeps iteration 1."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1), NO_BOOL]
    """Of sampling, the order of prompts and pairs, and the bootstrap."""
    run: Annotated[RunConfig, RUNTIME]
    paths: Annotated[PathsConfig, RUNTIME]
    policy: PolicyConfig
    prompts: PromptsConfig
    sampler: SamplerConfig
    oracle: OracleConfig
    judge: JudgeConfig
    encoder: EncoderConfig
    gate: GateConfig
    objective: ObjectiveConfig
    repulsion: RepulsionConfig
    calibration: CalibrationConfig
    trainer: TrainerConfig
    hardware: Annotated[HardwareConfig, RUNTIME]
    win_rate: WinRate
    """How P becomes win rates: of the whole matrix; of the mean scores (published, erases cycles); by halves of the
    opponents (cross_fit, with oracle.opponents, so that selection does not bias the targets)."""
    selection: SelectionConfig
    evaluate: EvaluateConfig
    tracking: Annotated[TrackingConfig, RUNTIME]
    diagnostics: Annotated[DiagnosticsConfig, RUNTIME]
    keep: Annotated[KeepConfig, RUNTIME]
    entry: Annotated[EntryConfig, ELSEWHERE]
    published: Annotated[PublishedConfig | None, RUNTIME] = None
    """Of a preset that has published results."""


def judges_of(key: str, judge: JudgeConfig) -> Iterable[tuple[str, JudgeConfig]]:
    """Yield a judge and its members, each with its key."""
    yield key, judge
    for name, member in judge.members.items():
        yield from judges_of(f"{key}.members.{name}", member)
