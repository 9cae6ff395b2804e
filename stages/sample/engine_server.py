"""vLLM servers that run already, at `sampler.urls`: one request a prompt, n = K, many under way at once.

    vllm serve FOLDER --served-model-name sparring-1a2b3c4d --dtype bfloat16

A server that serves another policy is refused with this command, filled in. What to know of vLLM's server (0.32):
- `return_token_ids` gives the ids as sampled, an end-of-turn token included; no text is tokenized again.
- What a request leaves out is taken from the policy's generation_config.json (top_k, repetition_penalty): nothing is.
- A response that reaches --max-model-len ends there as if it had reached max_tokens: refused.
- Requests share batches as they arrive, so two runs with the same seeds are equal up to rounding.
- dtype, quantization and --logprobs-mode (raw_logprobs, the default) are the server's; no answer tells them.
- On the CPU it must have --no-enable-chunked-prefill where sampling is reproducible (see engine_vllm), and starts with
  `python -m vllm.entrypoints.openai.api_server --model FOLDER`, as the CPU build's `vllm` command does not run.

Only vLLM's server is supported, and no other is accepted: SGLang's returns ids too, since July 2026, but draws all K
responses of a request with one seed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx

from pipeline.errors import ConfigError, DataError, SparringError
from stages.sample.engine import Sampled, Settings, finish_of

T = TypeVar("T")

KEY = "SPARRING_SERVER_KEY"
"""Environment variable of the sampling process with the servers' API key, which no file and no message holds."""
PATIENCE_S = 120.0
"""How long a request is tried again, at whichever URL, before the step fails."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0
LEFT_S = 10.0
"""A URL that failed is left for the others this long."""
CONNECT_S = 5.0
CHECK_S = 30.0
REQUEST_S = 900.0
"""K responses to one prompt, beside all others that the server has under way."""
RESPONSES = 256
"""Under way at one URL: what vLLM puts into a batch."""
NEUTRAL = {"top_k": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""No change to the policy; a server takes what is not said from the policy's generation_config.json."""


class ServerEngine:
    """The servers of `chosen.urls`: those that answer share the requests."""

    def __init__(self, folder: Path, chosen: Settings) -> None:
        self.folder, self.chosen = folder, chosen
        self.servers = [_Server(url) for url in chosen.urls]
        asyncio.run(self._open())

    def generate(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[Sampled]]:
        """Return K responses for each prompt, in the order of the prompts."""
        return asyncio.run(self._generate(prompt_ids, seeds))

    async def _open(self) -> None:
        async with _client() as client:
            await self._patiently(partial(self._check_all, client))

    async def _generate(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[Sampled]]:
        room = asyncio.Semaphore(max(1, RESPONSES // self.chosen.k) * len(self.servers))

        async def respond(ids: list[int], seed: int) -> list[Sampled]:
            async with room:
                return await self._patiently(partial(self._ask, client, ids, seed))

        async with _client() as client:
            return await asyncio.gather(*map(respond, prompt_ids, seeds))

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what `attempt` does; repeat it after longer and longer waits, for PATIENCE_S from its first fault."""
        wait, end = FIRST_WAIT_S, 0.0
        while True:
            try:
                return await attempt()
            except _Unavailable:
                end = end or time.monotonic() + PATIENCE_S
            if time.monotonic() + wait > end:
                said = "; ".join(f"{one.url}: {one.said or 'busy'}" for one in self.servers)
                raise SparringError(
                    f"sampler.urls: no answer for {PATIENCE_S:.0f} s ({said}). "
                    "Look at the servers, then run again to resume."
                )
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)

    async def _check_all(self, client: httpx.AsyncClient) -> None:
        """Check every URL; _Unavailable when none answers. One that does not is checked before its first request."""
        found = await asyncio.gather(*(self._check(client, one) for one in self.servers), return_exceptions=True)
        for fault in found:
            if fault is not None and not isinstance(fault, _Unavailable):
                raise fault
        if all(found):
            raise _Unavailable

    async def _check(self, client: httpx.AsyncClient, server: _Server) -> None:
        with server.in_use():
            listed = await _fetch(client, "GET", f"{server.url}/v1/models", CHECK_S)
        server.model = model_of(server.url, listed, self.folder, self.chosen)
        server.said, server.left_until = "", 0.0

    async def _ask(self, client: httpx.AsyncClient, ids: list[int], seed: int) -> list[Sampled]:
        """Return the responses to one prompt from the server that has the least to do."""
        server = self._pick()
        if not server.model:
            await self._check(client, server)
        body = request_body(self.chosen, server.model, ids, seed)
        with server.in_use():
            answer = await _fetch(client, "POST", f"{server.url}/v1/completions", REQUEST_S, body)
            return read_answer(server.url, answer, self.chosen, seed)

    def _pick(self) -> _Server:
        """Return the least busy server, one that failed only when its time has come and to one request at a time."""
        now = time.monotonic()
        server = min(self.servers, key=lambda one: (one.left_until > now, one.busy, one.left_until))
        if not server.model:
            server.left_until = now + LEFT_S
        return server


class _Unavailable(Exception):
    """A server did not answer, or not now."""


@dataclass
class _Server:
    url: str
    model: str = ""
    """The id of the policy there; empty before the server was checked, and again once it failed."""
    busy: int = 0
    left_until: float = 0.0
    said: str = ""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        self.busy += 1
        try:
            yield
        except _Unavailable as fault:
            self.model, self.said, self.left_until = "", str(fault), time.monotonic() + LEFT_S
            raise
        finally:
            self.busy -= 1


def request_body(chosen: Settings, model: str, prompt_ids: list[int], seed: int) -> dict[str, Any]:
    """Return the body of a request for K responses to one prompt; the server gives response i the seed + i."""
    return {
        "model": model,
        "prompt": prompt_ids,
        "n": chosen.k,
        "max_tokens": chosen.max_tokens,
        "temperature": chosen.temperature,
        "top_p": chosen.top_p,
        "min_p": chosen.min_p,
        **NEUTRAL,
        "seed": seed if chosen.reproducible else None,
        "stop": list(chosen.stop),
        "stop_token_ids": list(chosen.stop_ids),
        "logprobs": 0 if chosen.logprobs else None,
        "return_token_ids": True,
    }


def read_answer(url: str, answer: Mapping[str, Any], chosen: Settings, seed: int) -> list[Sampled]:
    """Return the K responses of an answer, in the order of their seeds."""
    choices = sorted(answer.get("choices", []), key=lambda choice: int(choice["index"]))
    if len(choices) != chosen.k:
        raise DataError(f"{url}: {len(choices)} responses came back, n={chosen.k} were asked for.")
    return [
        _sampled(url, choice, chosen, seed + i if chosen.reproducible else None) for i, choice in enumerate(choices)
    ]


def _sampled(url: str, choice: Mapping[str, Any], chosen: Settings, seed: int | None) -> Sampled:
    reason, ids = choice["finish_reason"], choice.get("token_ids")
    if reason == "abort":  # it is shutting down
        raise _Unavailable("it aborted a request")
    if not ids:
        raise DataError(
            f"{url}: no token ids in its answer. sampler=server needs the ids as they were sampled, which vLLM's "
            "server gives (return_token_ids, tested with 0.32): start that one, or use sampler=vllm."
        )
    finish = finish_of(ids, reason, chosen.stop_ids)
    if finish == "length" and len(ids) != chosen.max_tokens:
        raise DataError(
            f"{url}: a response was cut at {len(ids)} tokens, sampler.max_tokens={chosen.max_tokens}; "
            f"start the server with --max-model-len {chosen.max_model_len} or more."
        )
    return Sampled(ids, finish, seed, choice["logprobs"]["token_logprobs"] if chosen.logprobs else None)


def model_of(url: str, listed: Mapping[str, Any], folder: Path, chosen: Settings) -> str:
    """Return the id under which a server has the policy, known by its folder or by its name; DataError without."""
    models = listed.get("data", [])
    others = sorted({str(one.get("owned_by")) for one in models} - {"vllm"})
    if others:
        raise DataError(f"{url}: a server of {', '.join(others)}; sampler=server needs vLLM's own.")
    for one in models:
        root = Path(one.get("root") or "")  # a relative one is relative to a folder that only the server knows
        if one["id"] == chosen.policy_name or (root.is_absolute() and root.resolve() == folder.resolve()):
            return str(one["id"])
    served = ", ".join(f"{one['id']} ({one.get('root')})" for one in models) or "nothing"
    raise DataError(
        f"{url} serves {served}, wanted is {chosen.policy_name} ({folder.resolve()}): start there "
        f"`vllm serve {folder.resolve()} --served-model-name {chosen.policy_name} --dtype {chosen.dtype}`, "
        "then run again."
    )


def _client() -> httpx.AsyncClient:
    """Return a client that reaches the servers straight, through no proxy that the environment names."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{KEY} holds a character that no HTTP header can carry.")
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        limits=httpx.Limits(),
        trust_env=False,
        verify=httpx.create_ssl_context(),  # with the environment's SSL_CERT_FILE
    )


async def _fetch(
    client: httpx.AsyncClient, method: str, url: str, seconds: float, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the JSON of an answer; _Unavailable where another try may help, else DataError with what was said."""
    try:
        response = await client.request(method, url, json=body, timeout=httpx.Timeout(seconds, connect=CONNECT_S))
    except httpx.TransportError as error:
        raise _Unavailable(f"{type(error).__name__} {error}".strip()) from None
    status = response.status_code
    if status == 429 or status >= 500:
        raise _Unavailable(f"HTTP {status}: {_said(response)}")
    try:
        found = response.json() if status == 200 else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        key = f" Its API key belongs into {KEY}." if status in (401, 403) else ""
        raise DataError(f"{url} refused a request with HTTP {status}: {_said(response)}{key}")
    return found


def _said(response: httpx.Response) -> str:
    """Return the message of an error, or the first line of what came instead."""
    try:
        said = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = response.text
    return (said.strip().splitlines() or ["nothing"])[0][:300]
