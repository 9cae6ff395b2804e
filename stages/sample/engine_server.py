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
from stages.sample.engine import Sampled, Settings
from stages.sample.protocol import Unavailable, kind_of, model_of, read_answers, request_bodies

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
            except Unavailable:
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
        """Check every URL; Unavailable when none answers. One that does not is checked before its first request."""
        found = await asyncio.gather(*(self._check(client, one) for one in self.servers), return_exceptions=True)
        for fault in found:
            if fault is not None and not isinstance(fault, Unavailable):
                raise fault
        if all(found):
            raise Unavailable

    async def _check(self, client: httpx.AsyncClient, server: _Server) -> None:
        with server.in_use():
            listed = await _fetch(client, "GET", f"{server.url}/v1/models", CHECK_S)
            server.kind = kind_of(server.url, listed)
            if server.kind == "sglang":
                await self._check_sglang(client, server)
        server.model = model_of(server.url, listed, self.folder, self.chosen)
        server.said, server.left_until = "", 0.0
        if self.chosen.reproducible and len({one.kind for one in self.servers if one.model}) > 1:
            raise ConfigError(
                f"{server.url}: a server of {server.kind} beside others of another kind; the same seeds give other "
                "responses there. Use servers of one kind, or set sampler.reproducible=false."
            )

    async def _check_sglang(self, client: httpx.AsyncClient, server: _Server) -> None:
        if self.chosen.logprobs:
            raise ConfigError(f"{server.url}: SGLang's log-probs are not the policy's own; set sampler.logprobs=false.")
        if self.chosen.reproducible:
            info = await _fetch(client, "GET", f"{server.url}/server_info", CHECK_S)
            if not info.get("enable_deterministic_inference"):
                raise ConfigError(
                    f"{server.url}: this server takes no seeds; start SGLang with --enable-deterministic-inference or "
                    "set sampler.reproducible=false."
                )

    async def _ask(self, client: httpx.AsyncClient, ids: list[int], seed: int) -> list[Sampled]:
        """Return the responses to one prompt from the server that has the least to do."""
        server = self._pick()
        if not server.model:
            await self._check(client, server)
        url = f"{server.url}/v1/completions"
        bodies = request_bodies(self.chosen, server.kind, server.model, ids, seed)
        with server.in_use():
            answers = await asyncio.gather(*(_fetch(client, "POST", url, REQUEST_S, body) for body in bodies))
            return read_answers(server.url, answers, self.chosen, seed)

    def _pick(self) -> _Server:
        """Return the least busy server, one that failed only when its time has come and to one request at a time."""
        now = time.monotonic()
        server = min(self.servers, key=lambda one: (one.left_until > now, one.busy, one.left_until))
        if not server.model:
            server.left_until = now + LEFT_S
        return server


@dataclass
class _Server:
    url: str
    kind: str = "vllm"
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
        except Unavailable as fault:
            self.model, self.said, self.left_until = "", str(fault), time.monotonic() + LEFT_S
            raise
        finally:
            self.busy -= 1


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
    """Return the JSON of an answer; Unavailable where another try may help, else DataError with what was said."""
    try:
        response = await client.request(method, url, json=body, timeout=httpx.Timeout(seconds, connect=CONNECT_S))
    except httpx.TransportError as error:
        raise Unavailable(f"{type(error).__name__} {error}".strip()) from None
    status = response.status_code
    if status == 429 or status >= 500:
        raise Unavailable(f"HTTP {status}: {_said(response)}")
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
