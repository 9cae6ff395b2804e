"""A language model as the judge, at servers that speak OpenAI's protocol; see oracles/llm.py.

    vllm serve FOLDER --served-model-name NAME

A server returns the log-probs of the TOP likeliest first tokens; P(A) and P(B) are summed over those.
- A letter that is not among them gets the least log-prob of those. Its own is no larger: the logit can only
  be too close to zero.
- Where both letters are absent, the logit is 0: undecided. A pair that is undecided in both orders counts in the step's
  `tie_rate`.
- DataError, before anything is judged, for a server whose model answers a plain question with neither letter.

There is no tokenizer here: BYTES bytes of UTF-8 count as one token of `max_tokens`. That overestimates most text, and
underestimates digits and some scripts. A space breaks a control token spelled in a text, for the spellings that
question.py knows. Only the server knows which weights, in which precision, its model name stands for.
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
"""Environment variable of the scoring process with the servers' API key; no file and no message contains the key."""
TOP = 20
"""`top_logprobs` of a request: the most that the protocol allows."""
FEWEST = 5
"""Log-probs that an answer must have, so that they bound the log-prob of a letter that is not among them."""
BYTES = 3
"""Of UTF-8, counted as one token."""
REQUESTS = 64
"""At one URL at a time."""
CHECK_S = 30.0
REQUEST_S = 300.0
PLAIN = ("User: What is 1 + 1?", "1 + 1 is 2.", "Green.")
"""A prompt and two responses that any judge can compare."""
SHOWN = 8
"""Model names in an error message."""


class JudgeServer:
    """The model `model` of each of the URLs. An oracle: no prompt of its training is known."""

    trained_on: frozenset[int] = frozenset()

    def __init__(self, urls: Sequence[str], model: str, template: str, max_tokens: int) -> None:
        self.model, self.template, self.max_tokens = model, template, max_tokens
        self.pool = Servers("oracle.urls", KEY, urls, self._check)
        self.pool.open()

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Return log P(A) - log P(B) for each duel, and whether a text of it was truncated."""
        questions, truncated = [], []
        for prompt, first, second in duels:
            duel = Duel(tuple((role, harmless(text)) for role, text in prompt), harmless(first), harmless(second))
            question, cut = fitted(self.template, duel, self.max_tokens, token_count, first_tokens)
            questions.append(question)
            truncated.append(cut)
        logits = [0.0 if logit is None else logit for logit in self.pool.map(self._ask, questions, REQUESTS)]
        return Verdicts(np.array(logits, dtype=np.float64), np.array(truncated, dtype=bool))

    async def _check(self, client: Client, server: Server) -> str:
        answer = await client.fetch("GET", f"{server.url}/v1/models", CHECK_S)
        names = [str(one.get("id")) for one in answer.get("data") or []]
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
    """Return log P(A) - log P(B), None where the tokens have neither letter; DataError where log-probs are missing."""
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
    """Return log P(A) - log P(B) from (text, log-prob) of the likeliest tokens; see the module for absent letters."""
    a, b = ([logprob for text, logprob in top if text.strip() == letter] for letter in "AB")
    if not a and not b:
        return None
    least = [min(logprob for _, logprob in top)]
    return float(np.logaddexp.reduce(a or least) - np.logaddexp.reduce(b or least))


def token_count(text: str) -> int:
    """Return an estimate of the tokens of a text."""
    return math.ceil(len(text.encode()) / BYTES)


def first_tokens(text: str, tokens: int) -> str:
    """Return the text of about the first `tokens` tokens, cut between characters."""
    return text.encode()[: tokens * BYTES].decode(errors="ignore")
