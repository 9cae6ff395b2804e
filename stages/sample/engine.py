"""What a sampling engine is: token ids in, K sampled responses for each prompt out.

An engine is a class with `generate(prompt_ids, seeds) -> list[list[Sampled]]`, made from a model folder and
`Settings`. Where sampling is reproducible, response i of a prompt is drawn with the prompt's seed + i and no other
randomness.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

CLASSES = {"vllm": "VllmEngine", "transformers": "TransformersEngine", "server": "ServerEngine"}
"""Engine -> its class, in the module engine_NAME beside this one."""


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
    """Implemented by each of `CLASSES`."""

    def generate(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[Sampled]]:
        """Return K responses for each prompt, in order."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an engine needs of the step's identity and runtime, and the ids that end a turn."""

    dtype: str
    k: int
    max_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    min_p: float
    stop: tuple[str, ...]
    stop_ids: tuple[int, ...]
    logprobs: bool
    reproducible: bool
    engine_args: str
    """Further arguments as a JSON object."""
    cpus: int
    gpus: int
    kv_cache_gb: int
    gpu_memory: float
    max_model_len: int
    urls: tuple[str, ...] = ()
    policy_name: str = ""
    """What a server may call the policy, so that it is known without its folder."""


def settings(
    identity: Mapping[str, Any], runtime: Mapping[str, Any], stop_ids: Sequence[int], policy_name: str
) -> Settings:
    """Return the settings of a `sample` step."""
    arguments = {**runtime["engine_args"], **identity["engine_args"]}
    values = {
        **runtime,
        **identity,
        "stop_ids": tuple(stop_ids),
        "engine_args": json.dumps(arguments, sort_keys=True),
        "policy_name": policy_name,
    }
    chosen: dict[str, Any] = {name: values[name] for name in Settings.__dataclass_fields__}
    lists = {name: tuple(value) for name, value in chosen.items() if isinstance(value, list)}
    return Settings(**{**chosen, **lists})


def import_engine(name: str, cpus: int) -> None:
    """Import what the engine `name` needs, which takes longer than loading a small policy."""
    if name == "vllm":
        from sparring.stages.vllm import import_vllm

        import_vllm(cpus)


def make_engine(name: str, folder: Path, chosen: Settings) -> Engine:
    """Load `folder` into the engine `name`."""
    engine: Engine = getattr(importlib.import_module(_module(name)), CLASSES[name])(folder, chosen)
    return engine


def modules(identity: Mapping[str, Any]) -> list[str]:
    """Return the module of the engine that a step `sample` takes."""
    return [_module(identity["engine"])]


def _module(name: str) -> str:
    return f"{__package__}.engine_{name}"


def stop_ids(folder: Path, eos: int | None, end_of_turn: int | None, named: Sequence[int] = ()) -> list[int]:
    """Return the ids that end a response: the generation config's, the tokenizer's, the template's, `named`."""
    path = folder / "generation_config.json"
    listed = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    found = {*(listed if isinstance(listed, list) else [listed]), eos, end_of_turn, *named}
    return sorted(i for i in found if i is not None)


def finish_of(ids: Sequence[int], reason: str | None, stop_ids: Sequence[int]) -> str:
    """Return how a response ended, from its ids and vLLM's finish reason."""
    if reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a response with {reason!r} instead of stop or length")
    return "stop_text" if reason == "stop" and ids[-1] not in stop_ids else reason


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return `text` up to the first of the stop texts in it; the ids of a response keep what was sampled."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else text
