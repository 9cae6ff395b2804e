"""A language model as the judge, at servers that speak OpenAI's protocol; see oracles/llm.py.

    vllm serve FOLDER --served-model-name NAME

A server returns the log-probs of the TOP likeliest first tokens, and P(A) and P(B) are summed over those.
- A letter that is not among them is given the least log-prob of those: it has no more, so the logit is closer to
  zero than it should be.
- Where neither is, the logit is 0: undecided. Undecided in both orders, a pair counts in the step's `tie_rate`.
- A server whose model answers a plain question with neither is refused before anything is judged.

Without a tokenizer, BYTES bytes of UTF-8 count as one of `max_tokens`: that is too many tokens for most text, and too
few for digits and some scripts. A control token spelled in a text is broken by a space, as far as its
spelling is known (question.py). Which weights and which precision stand behind a name, only the server knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparring.stages.annotate.oracle import Duel, Verdicts
from sparring.stages.annotate.question import filled, fitted, harmless
from sparring.stages.errors import DataError
from sparring.stages.servers import Client, Server, Servers, Unavailable

KEY = "SPARRING_ORACLE_KEY"
"""Environment variable of the scoring process with the servers' API key, which no file and no message holds."""
TOP = 20
"""The most that the protocol gives."""
FEWEST = 5
"""Log-probs in an answer from which the log-prob of a letter that is not among them can be bounded."""
BYTES = 3
REQUESTS = 64
"""Under way at one URL."""
CHECK_S = 30.0
REQUEST_S = 300.0
PLAIN = ("User: What is 1 + 1?", "1 + 1 is 2.", "Green.")
SHOWN = 8
"""Names in a message."""


class JudgeServer:
    """The model `model` of each of the URLs. An oracle: no prompt of its training is known."""

    trained_on: frozenset[int] = frozenset()

    def __init__(self, urls: Sequence[str], model: str, template: str, max_tokens: int) -> None:
        self.model, self.template, self.max_tokens = model, template, max_tokens
        self.pool = Servers("oracle.urls", KEY, urls, self._check)
        self.pool.open()

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Return log P(A) - log P(B) for each duel, and whether a text of it was cut."""
        asked = []
        for prompt, first, second in duels:
            duel = Duel(tuple((role, harmless(text)) for role, text in prompt), harmless(first), harmless(second))
            asked.append(fitted(self.template, duel, self.max_tokens, size, head))
        logits = self.pool.map(self._ask, [question for question, _ in asked], REQUESTS)
        decided = [0.0 if logit is None else logit for logit in logits]
        return Verdicts(np.array(decided, dtype=np.float64), np.array([cut for _, cut in asked], dtype=bool))

    async def _check(self, client: Client, server: Server) -> str:
        listed = await client.fetch("GET", f"{server.url}/v1/models", CHECK_S)
        names = [str(one.get("id")) for one in listed.get("data") or []]
        if self.model not in names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise DataError(
                f"{server.url} has no model {self.model}; it serves {', '.join(names[:SHOWN]) or 'nothing'}{more}: set "
                "oracle.options.model to its name there, or start the server with it."
            )
        if await self._ask(client, server, filled(self.template, *PLAIN)) is None:
            raise DataError(
                f"{server.url}: {self.model} answers a plain question with neither A nor B; use a chat model that does "
                "not think aloud first, or change oracle.options.template."
            )
        return self.model

    async def _ask(self, client: Client, server: Server, question: str) -> float | None:
        answer = await client.fetch(
            "POST",
            f"{server.url}/v1/chat/completions",
            REQUEST_S,
            {
                "model": self.model,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": True,
                "top_logprobs": TOP,
            },
            on_400="If a question is too long for it, lower oracle.options.max_tokens.",
        )
        return read_answer(server.url, answer)


def read_answer(url: str, answer: Mapping[str, Any]) -> float | None:
    """Return log P(A) - log P(B), None where neither is among its tokens; DataError without log-probs."""
    try:
        choice = answer["choices"][0]
        if choice.get("finish_reason") == "abort":  # it is shutting down
            raise Unavailable("it aborted a request")
        top = [(str(one["token"]), float(one["logprob"])) for one in choice["logprobs"]["content"][0]["top_logprobs"]]
    except (KeyError, IndexError, TypeError, ValueError):
        top = []
    if len(top) < FEWEST:
        raise DataError(
            f"{url}: {len(top)} log-probs in its answer, oracle=llm needs {TOP}: use a server that gives them "
            "(logprobs, top_logprobs), vLLM's for one, or a folder (oracle.path) and no urls."
        )
    return logit_of(top)


def logit_of(top: Sequence[tuple[str, float]]) -> float | None:
    """Return log P(A) - log P(B) of (text, log-prob) of the likeliest tokens; see the module for those that lack."""
    a, b = ([logprob for text, logprob in top if text.strip() == letter] for letter in "AB")
    if not a and not b:
        return None
    least = [min(logprob for _, logprob in top)]
    return float(np.logaddexp.reduce(a or least) - np.logaddexp.reduce(b or least))


def size(text: str) -> int:
    """Return about how many tokens a text has."""
    return math.ceil(len(text.encode()) / BYTES)


def head(text: str, tokens: int) -> str:
    """Return the first tokens of a text, no character of it in part."""
    return text.encode()[: tokens * BYTES].decode(errors="ignore")
