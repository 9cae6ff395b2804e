"""What a sampling engine is: token ids in, K sampled responses for each prompt out.

An engine is a class with `generate(prompt_ids, seeds) -> list[list[Sampled]]`, made from a model folder and
`EngineSettings`. Where sampling is reproducible, response i of a prompt is drawn with the prompt's seed + i and no
other randomness.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sparring.stages.sample.config import EngineSampler, SamplerConfig, SampleSettings
from sparring.stages.step import Workers, resolve

ENGINES = {
    "vllm": "sparring.stages.sample.engine_vllm:VllmEngine",
    "transformers": "sparring.stages.sample.engine_transformers:TransformersEngine",
    "server": "sparring.stages.sample.engine_server:ServerEngine",
}
"""Engine -> module and class."""


class Sampled(NamedTuple):
    """One response: `ids` exactly as sampled, an end-of-turn token included iff it was sampled."""

    ids: list[int]
    finish: str
    """stop (an end-of-turn token was sampled), stop_text (a text of `stop` was) or length (max_tokens were)."""
    seed: int | None
    """None where sampling is not reproducible."""
    logprobs: list[float] | None = None
    """Of each id under the policy itself, before temperature, top_p and min_p; None unless asked for."""


class Engine(Protocol):
    """Implemented by each of `ENGINES`."""

    def generate(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[Sampled]]:
        """Return K responses for each prompt, in order."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine is started with, beside the policy's folder."""

    sampler: SamplerConfig
    gpu_memory: float
    """Share of the GPUs' memory that vLLM takes."""
    kv_cache_gb: int
    """Of vLLM on a CPU."""
    workers: Workers
    max_model_len: int
    """Longest prompt plus response, in tokens."""
    stop_ids: tuple[int, ...]
    """Ids of the tokens that end a response."""
    policy_name: str = ""
    """A name under which a server may have loaded the policy; else a server is recognised by the policy's folder."""

    @property
    def engine_args(self) -> dict[str, Any]:
        """Arguments that the user passes on to the engine; {} for servers, which are started with their own."""
        return self.sampler.engine_args if isinstance(self.sampler, EngineSampler) else {}


def make_engine(name: str, folder: Path, settings: EngineSettings) -> Engine:
    """Load `folder` into the engine `name`."""
    engine: Engine = resolve(ENGINES[name])(folder, settings)
    return engine


def modules(settings: SampleSettings) -> list[str]:
    """Return the module of the engine that a step `sample` takes."""
    return [ENGINES[settings.sampler.engine].partition(":")[0]]


def stop_ids(folder: Path, eos: int | None, end_of_turn: int | None, named: Sequence[int] = ()) -> list[int]:
    """Return the ids that end a response: the generation config's, the tokenizer's, the template's, `named`."""
    path = folder / "generation_config.json"
    listed = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    ids = {*(listed if isinstance(listed, list) else [listed]), eos, end_of_turn, *named}
    return sorted(i for i in ids if i is not None)


def finish_of(ids: Sequence[int], reason: str | None, stop_ids: Sequence[int]) -> str:
    """Return how a response ended, from its ids and vLLM's finish reason."""
    if reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a response with {reason!r} instead of stop or length")
    return "stop_text" if reason == "stop" and ids[-1] not in stop_ids else reason


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return `text` up to the first of the stop texts in it; the ids of a response keep what was sampled."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else text
