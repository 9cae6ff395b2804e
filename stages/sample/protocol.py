"""What is asked of a server of vLLM or SGLang, and what its answers say: pure functions on JSON; see engine_server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.stages.errors import DataError
from sparring.stages.sample.engine import EngineSettings, Sampled, finish_of
from sparring.stages.servers import Unavailable

NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""No change to the policy; a server takes what is not said from the policy's generation_config.json."""
EVERY_TOKEN = {"vllm": 0, "sglang": -1}
"""The top_k that cuts nothing."""
START = {
    "vllm": "vllm serve {folder} --served-model-name {name} --dtype {dtype}",
    "sglang": "python -m sglang.launch_server --model-path {folder} --served-model-name {name} --dtype {dtype} "
    "--enable-deterministic-inference",
}


def request_bodies(
    settings: EngineSettings, kind: str, model: str, prompt_ids: list[int], seed: int
) -> list[dict[str, Any]]:
    """Return the bodies of the requests for K responses to one prompt, response i with the seed + i.

    One request of vLLM's server is enough: it gives its response i that seed itself. SGLang's has a seed in any case,
    as a server that takes seeds draws all that come without one with the same noise.
    """
    sampler, sglang = settings.sampler, kind == "sglang"
    each = 1 if sglang else sampler.k
    return [
        {
            "model": model,
            "prompt": prompt_ids,
            "n": each,
            "max_tokens": sampler.max_tokens,
            "temperature": sampler.temperature,
            "top_p": sampler.top_p,
            "min_p": sampler.min_p,
            "top_k": EVERY_TOKEN[kind],
            **NEUTRAL,
            "seed": seed + i if sampler.reproducible or sglang else None,
            "stop": list(sampler.stop),
            "stop_token_ids": list(settings.stop_ids),
            "logprobs": 0 if sampler.logprobs else None,
            "return_token_ids": True,
        }
        for i in range(0, sampler.k, each)
    ]


def read_answers(url: str, answers: Sequence[Mapping[str, Any]], settings: EngineSettings, seed: int) -> list[Sampled]:
    """Return the K responses to a prompt, in the order of their seeds."""
    choices = [
        choice
        for answer in answers
        for choice in sorted(answer.get("choices", []), key=lambda choice: int(choice["index"]))
    ]
    if len(choices) != settings.sampler.k:
        raise DataError(f"{url}: {len(choices)} responses came back, {settings.sampler.k} were asked for.")
    return [
        _sampled(url, choice, settings, seed + i if settings.sampler.reproducible else None)
        for i, choice in enumerate(choices)
    ]


def _sampled(url: str, choice: Mapping[str, Any], settings: EngineSettings, seed: int | None) -> Sampled:
    reason, ids = choice["finish_reason"], choice.get("token_ids")
    if reason == "abort":  # it is shutting down
        raise Unavailable("it aborted a request")
    if not ids:
        raise DataError(
            f"{url}: no token ids in its answer. sampler=server needs the ids as they were sampled, which the servers "
            "of vLLM 0.32 and SGLang 0.5.23 give (return_token_ids): start one of these, or use sampler=vllm."
        )
    finish = finish_of(ids, reason, settings.stop_ids)
    if finish == "length" and len(ids) != settings.sampler.max_tokens:
        raise DataError(
            f"{url}: a response was cut at {len(ids)} tokens, sampler.max_tokens={settings.sampler.max_tokens}; "
            f"start the server with a longer context (--max-model-len, --context-length): {settings.max_model_len}."
        )
    return Sampled(ids, finish, seed, choice["logprobs"]["token_logprobs"] if settings.sampler.logprobs else None)


def kind_of(url: str, listed: Mapping[str, Any]) -> str:
    """Return whose server this is: vllm or sglang; DataError for any other."""
    owners = {str(one.get("owned_by")) for one in listed.get("data", [])}
    others = sorted(owners - set(START))
    if others or len(owners) > 1:
        raise DataError(f"{url}: a server of {', '.join(others or owners)}; sampler=server needs vLLM's or SGLang's.")
    return owners.pop() if owners else "vllm"


def model_of(url: str, listed: Mapping[str, Any], folder: Path, settings: EngineSettings) -> str:
    """Return the id under which a server has the policy, known by its folder or by its name; DataError without."""
    models = listed.get("data", [])
    for one in models:
        root = Path(one.get("root") or "")  # a relative one is relative to a folder that only the server knows
        if one["id"] == settings.policy_name or (root.is_absolute() and root.resolve() == folder.resolve()):
            return str(one["id"])
    served = ", ".join(f"{one['id']} ({one.get('root')})" for one in models) or "nothing"
    start, dtype = START[kind_of(url, listed)], settings.sampler.dtype
    command = start.format(folder=folder.resolve(), name=settings.policy_name, dtype=dtype)
    raise DataError(
        f"{url} serves {served}, wanted is {settings.policy_name} ({folder.resolve()}): start there `{command}`, then "
        "run again."
    )
