"""Settings of steps for tests: those of the default configuration, with changes named by their fields."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

from sparring.pipeline.config import load
from sparring.pipeline.config.model import Config
from sparring.stages.annotate.config import CalibrateSettings, EmbedSettings, JudgeConfig, PairsSettings, ScoreSettings
from sparring.stages.annotate.gates.linear import LinearGate
from sparring.stages.evaluate.config import EvaluateSettings
from sparring.stages.fields import hints
from sparring.stages.sample.config import PromptsSettings, SampleSettings

Model = TypeVar("Model")
BOUNDS: dict[str, Any] = {"floor": 0.0, "ceil": 1.0, "floor_quantile": None, "ceil_quantile": None, "scope": "pairwise"}
LINEAR_GATE = LinearGate(name="linear", **BOUNDS)


@cache
def default(*words: str) -> Config:
    """Return the configuration of a run, composed once."""
    return load(["hardware=cpu", *words])


def changed(model: Model, **changes: Any) -> Model:
    """Return a model with fields changed, its own or those of the groups in it: `k` is that of the sampler."""
    made: Any = model
    left = dict(changes)
    own = {name: left.pop(name) for name in list(left) if name in hints(made.__class__)}
    made = replace(made, **own) if own else made
    for name in hints(made.__class__):
        value = getattr(made, name)
        below = {key: one for key, one in left.items() if is_dataclass(value) and key in hints(value.__class__)}
        if below:
            made = replace(made, **{name: replace(value, **below)})
            left = {key: one for key, one in left.items() if key not in below}
    assert not left, f"no such settings: {', '.join(left)}"
    found: Model = made
    return found


def prompts(**changes: Any) -> PromptsSettings:
    """Return the settings of a step `prompts`."""
    return changed(PromptsSettings(prompts=default().prompts, on_empty="refuse"), **changes)


def sample(engine: str = "vllm", **changes: Any) -> SampleSettings:
    """Return the settings of a step `sample`: a slice of all training prompts."""
    config = default(f"sampler={engine}", *["sampler.urls=[http://127.0.0.1:1]"] * (engine == "server"))
    made = SampleSettings(
        sampler=config.sampler,
        stop_tokens=(),
        seed=0,
        split="train",
        slice=0,
        rows=None,
        slices=1,
        max_model_len=512,
        hardware=config.hardware,
    )
    return changed(made, **changes)


def score(kind: str, members: dict[str, JudgeConfig] | None = None, **options: Any) -> ScoreSettings:
    """Return the settings of a step `score` by one oracle."""
    oracle = JudgeConfig(kind=kind, options=options, members=members or {})
    return ScoreSettings(oracle=oracle, anchors=None, seed=0)


def embed(window: int) -> EmbedSettings:
    """Return the settings of a step `embed`."""
    return EmbedSettings(encoder=replace(default().encoder, window=window))


def calibrate(gate: str = "linear", **changes: Any) -> CalibrateSettings:
    """Return the settings of a step `calibrate`."""
    made = CalibrateSettings(gate=default(f"gate={gate}").gate, seed=7, dealt_over="pairs")
    return changed(made, **changes)


def evaluate(**changes: Any) -> EvaluateSettings:
    """Return the settings of a step `evaluate`."""
    return changed(EvaluateSettings(evaluate=default().evaluate, seed=0), **changes)


def pairs(**changes: Any) -> PairsSettings:
    """Return the settings of a step `pairs`."""
    made = PairsSettings(win_rate="matrix", selection=default().selection, seed=0, gated=None)
    return changed(made, **changes)
