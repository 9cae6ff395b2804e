"""Servers that run already, at `sampler.urls`: vLLM's or SGLang's, many requests under way at once.

    vllm serve FOLDER --served-model-name sparring-1a2b3c4d --dtype bfloat16
    python -m sglang.launch_server --model-path FOLDER --served-model-name sparring-1a2b3c4d --dtype bfloat16 \
        --enable-deterministic-inference

A server that serves another policy is refused with this command, filled in. What to know of both:
- `return_token_ids` gives the ids as sampled, an end-of-turn token included; no text is tokenized again.
- What a request leaves out is taken from the policy's generation_config.json (top_k, repetition_penalty): nothing is.
- A response that reaches the server's own limit ends there as if it had reached max_tokens: refused.
- Requests share batches as they arrive, so two runs with the same seeds are equal up to rounding.
- dtype and quantization are the server's; no answer tells them.
Of vLLM's (0.32):
- One request a prompt, n = K. Its --logprobs-mode must be raw_logprobs, the default.
- On the CPU it must have --no-enable-chunked-prefill where sampling is reproducible (see engine_vllm), and starts with
  `python -m vllm.entrypoints.openai.api_server --model FOLDER`, as the CPU build's `vllm` command does not run.
Of SGLang's (0.5.23), after its source: no such server has answered this engine yet, as none runs on a CPU without a
build of its own.
- One request a response, as all of one request would be drawn with the same noise; they share the prompt's prefill.
- It takes seeds with --enable-deterministic-inference only; without, `sampler.reproducible` is refused.
- Its log-probs are of the distribution after temperature; refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.stages.errors import ConfigError, DataError
from sparring.stages.sample.config import ServerSampler
from sparring.stages.sample.engine import EngineSettings, Sampled, finish_of
from sparring.stages.servers import Client, Server, Servers, Unavailable

NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""No change to the policy; a server takes what is not said from the policy's generation_config.json."""
EVERY_TOKEN = {"vllm": 0, "sglang": -1}
"""The top_k that cuts nothing."""
START = {
    "vllm": "vllm serve {folder} --served-model-name {name} --dtype {dtype}",
    "sglang": "python -m sglang.launch_server --model-path {folder} --served-model-name {name} --dtype {dtype} "
    "--enable-deterministic-inference",
}
KEY = "SPARRING_SERVER_KEY"
"""Environment variable of the sampling process with the servers' API key, which no file and no message holds."""
CHECK_S = 30.0
REQUEST_S = 900.0
"""K responses to one prompt, beside all others that the server has under way."""
RESPONSES = 256
"""Under way at one URL: what vLLM puts into a batch."""


class ServerEngine:
    """The servers of `sampler.urls`: those that answer share the requests."""

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        self.folder, self.settings = folder, settings
        assert isinstance(settings.sampler, ServerSampler)
        self.pool = Servers("sampler.urls", KEY, settings.sampler.urls, self._check)
        self.servers = self.pool.all
        self.pool.open()

    def generate(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[Sampled]]:
        """Return K responses for each prompt, in the order of the prompts."""
        requests = zip(prompt_ids, seeds, strict=True)
        return self.pool.map(self._ask, requests, max(1, RESPONSES // self.settings.sampler.k))

    async def _check(self, client: Client, server: Server) -> str:
        listed = await client.fetch("GET", f"{server.url}/v1/models", CHECK_S)
        server.kind = kind_of(server.url, listed)
        sampler = self.settings.sampler
        if server.kind == "sglang":
            if sampler.logprobs:
                raise ConfigError(
                    f"{server.url}: SGLang's log-probs are not the policy's own; set sampler.logprobs=false."
                )
            info = await client.fetch("GET", f"{server.url}/server_info", CHECK_S) if sampler.reproducible else {}
            if sampler.reproducible and not info.get("enable_deterministic_inference"):
                raise ConfigError(
                    f"{server.url}: this server takes no seeds; start SGLang with --enable-deterministic-inference or "
                    "set sampler.reproducible=false."
                )
        model = model_of(server.url, listed, self.folder, self.settings)
        kinds = {one.kind for one in self.servers if one.model or one is server}
        if sampler.reproducible and len(kinds) > 1:
            raise ConfigError(
                f"{server.url}: a server of {server.kind} beside others of another kind; the same seeds give other "
                "responses. Use servers of one kind, or set sampler.reproducible=false."
            )
        return model

    async def _ask(self, client: Client, server: Server, request: tuple[list[int], int]) -> list[Sampled]:
        """Return the K responses to one prompt."""
        ids, seed = request
        url = f"{server.url}/v1/completions"
        bodies = request_bodies(self.settings, server.kind, server.model, ids, seed)
        answers = await asyncio.gather(*(client.fetch("POST", url, REQUEST_S, body) for body in bodies))
        return read_answers(server.url, answers, self.settings, seed)


# Requests and answers, as JSON


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
        raise DataError(f"{url}: {len(choices)} responses came back; sampler.k={settings.sampler.k}.")
    sampled, sampler = [], settings.sampler
    for i, choice in enumerate(choices):
        reason, ids = choice["finish_reason"], choice.get("token_ids")
        if reason == "abort":  # it is shutting down
            raise Unavailable("it aborted a request")
        if not ids:
            raise DataError(
                f"{url}: no token ids in its answer. sampler=server needs the ids as they were sampled, which the "
                "servers of vLLM 0.32 and SGLang 0.5.23 give (return_token_ids): start one of these, or use "
                "sampler=vllm."
            )
        finish = finish_of(ids, reason, settings.stop_ids)
        if finish == "length" and len(ids) != sampler.max_tokens:
            raise DataError(
                f"{url}: a response was cut at {len(ids)} tokens, sampler.max_tokens={sampler.max_tokens}; "
                f"start the server with a longer context (--max-model-len, --context-length): {settings.max_model_len}."
            )
        logprobs = choice["logprobs"]["token_logprobs"] if sampler.logprobs else None
        sampled.append(Sampled(ids, finish, seed + i if sampler.reproducible else None, logprobs))
    return sampled


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
