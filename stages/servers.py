"""Servers that run already: many requests under way at once, shared by those that answer.

A server that fails is left to the others and checked again before its next request; a request is tried again, at
whichever URL, for PATIENCE_S from its first fault. What a request is, and what makes a server the right one, are the
caller's: `ask` and `check`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx

from sparring.stages.errors import ConfigError, DataError, SparringError

T = TypeVar("T")
R = TypeVar("R")

PATIENCE_S = 120.0
"""How long a request is tried again, at whichever URL, before the step fails."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0
LEFT_S = 10.0
"""A URL that failed is left for the others this long."""
CONNECT_S = 5.0


class Unavailable(Exception):
    """A server did not answer, or not now."""


@dataclass
class Server:
    """One URL."""

    url: str
    kind: str = ""
    """Whose server it is, where `check` sets it."""
    model: str = ""
    """The id of the model there; empty before the server was checked, and again once it failed."""
    busy: int = 0
    left_until: float = 0.0
    fault: str = ""
    """Why it failed last."""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        self.busy += 1
        try:
            yield
        except Unavailable as fault:
            self.model, self.fault, self.left_until = "", str(fault), time.monotonic() + LEFT_S
            raise
        finally:
            self.busy -= 1


@dataclass(frozen=True)
class Client:
    """What requests are sent with."""

    http: httpx.AsyncClient
    key: str
    """The environment variable of the API key."""

    async def fetch(
        self, method: str, url: str, seconds: float, body: Mapping[str, Any] | None = None, on_400: str = ""
    ) -> dict[str, Any]:
        """Return the JSON of an answer; Unavailable where another try may help, else DataError with its message.

        on_400: a sentence that is added where the server answers that the request is bad.
        """
        timeout = httpx.Timeout(seconds, connect=CONNECT_S)
        try:
            response = await self.http.request(method, url, json=body, timeout=timeout)
        except httpx.TransportError as error:
            raise Unavailable(f"{type(error).__name__} {error}".strip()) from None
        status = response.status_code
        if status == 429 or status >= 500:
            raise Unavailable(f"HTTP {status}: {_message(response)}")
        try:
            answer = response.json() if status == 200 else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            key = f" Its API key belongs into {self.key}." if status in (401, 403) else ""
            remedy = f" {on_400}" if status == 400 and on_400 else key
            raise DataError(f"{url} refused a request with HTTP {status}: {_message(response)}{remedy}")
        return answer


class Servers:
    """The servers of the configuration key `place` (`sampler.urls`): those that answer share the requests.

    key: environment variable with the API key of all, which no file and no message holds.
    check: returns the id of the model at a server; raises where it is the wrong one.
    """

    def __init__(
        self, place: str, key: str, urls: Iterable[str], check: Callable[[Client, Server], Awaitable[str]]
    ) -> None:
        self.place, self.key, self.check = place, key, check
        self.all = [Server(url) for url in urls]

    def open(self) -> None:
        """Check every URL, until one answers."""
        asyncio.run(self._open())

    def map(self, ask: Callable[[Client, Server, T], Awaitable[R]], requests: Iterable[T], most: int) -> list[R]:
        """Return what `ask` gives for each, in their order; at most so many under way for each URL."""
        return asyncio.run(self._map(ask, requests, most))

    async def _open(self) -> None:
        async with _client(self.key) as http:
            await self._patiently(partial(self._check_all, Client(http, self.key)))

    async def _map(self, ask: Callable[[Client, Server, T], Awaitable[R]], requests: Iterable[T], most: int) -> list[R]:
        slots = asyncio.Semaphore(most * len(self.all))

        async def answer(client: Client, one: T) -> R:
            async with slots:
                return await self._patiently(partial(self._ask, client, ask, one))

        async with _client(self.key) as http:
            client = Client(http, self.key)
            return await asyncio.gather(*(answer(client, one) for one in requests))

    async def _patiently(self, attempt: Callable[[], Awaitable[R]]) -> R:
        """Return what `attempt` does; repeat it after longer and longer waits, for PATIENCE_S from its first fault."""
        wait, end = FIRST_WAIT_S, 0.0
        while True:
            try:
                return await attempt()
            except Unavailable:
                end = end or time.monotonic() + PATIENCE_S
            if time.monotonic() + wait > end:
                faults = "; ".join(f"{one.url}: {one.fault or 'busy'}" for one in self.all)
                raise SparringError(
                    f"{self.place}: no answer for {PATIENCE_S:.0f} s ({faults}). "
                    "Look at the servers, then run again to resume."
                )
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)

    async def _check_all(self, client: Client) -> None:
        """Check every URL; Unavailable when none answers. One that does not is checked before its first request."""
        faults = await asyncio.gather(*(self._check(client, one) for one in self.all), return_exceptions=True)
        for fault in faults:
            if fault is not None and not isinstance(fault, Unavailable):
                raise fault
        if all(faults):
            raise Unavailable

    async def _check(self, client: Client, server: Server) -> None:
        with server.in_use():
            server.model = await self.check(client, server)
        server.fault, server.left_until = "", 0.0

    async def _ask(self, client: Client, ask: Callable[[Client, Server, T], Awaitable[R]], one: T) -> R:
        """Return the answer of the least busy server; one that failed gets a request at a time, after LEFT_S."""
        now = time.monotonic()
        server = min(self.all, key=lambda one: (one.left_until > now, one.busy, one.left_until))
        if not server.model:
            server.left_until = now + LEFT_S
            await self._check(client, server)
        with server.in_use():
            return await ask(client, server, one)


def _client(key: str) -> httpx.AsyncClient:
    """Return a client that reaches the servers straight, through no proxy that the environment names."""
    secret = os.environ.get(key, "").strip()
    if not (secret.isascii() and secret.isprintable()):
        raise ConfigError(f"{key} holds a character that no HTTP header can carry.")
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {secret}"} if secret else {},
        limits=httpx.Limits(),
        trust_env=False,
        verify=httpx.create_ssl_context(),  # with the environment's SSL_CERT_FILE
    )


def _message(response: httpx.Response) -> str:
    """Return the message of an error, or the first line of the body."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text
    return (message.strip().splitlines() or ["nothing"])[0][:300]
