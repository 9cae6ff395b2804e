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
from collections.abc import Sequence
from pathlib import Path

from sparring.stages.errors import ConfigError
from sparring.stages.sample.engine import EngineSettings, Sampled
from sparring.stages.sample.protocol import kind_of, model_of, read_answers, request_bodies
from sparring.stages.servers import Client, Server, Servers

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
        self.pool = Servers("sampler.urls", KEY, settings.urls, self._check)
        self.servers = self.pool.all
        self.pool.open()

    def generate(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[Sampled]]:
        """Return K responses for each prompt, in the order of the prompts."""
        asked = zip(prompt_ids, seeds, strict=True)
        return self.pool.map(self._ask, asked, max(1, RESPONSES // self.settings.sampler.k))

    async def _check(self, client: Client, server: Server) -> str:
        listed = await client.fetch("GET", f"{server.url}/v1/models", CHECK_S)
        server.kind = kind_of(server.url, listed)
        if server.kind == "sglang":
            await self._check_sglang(client, server)
        model = model_of(server.url, listed, self.folder, self.settings)
        known = {one.kind for one in self.servers if one.model or one is server}
        if self.settings.sampler.reproducible and len(known) > 1:
            raise ConfigError(
                f"{server.url}: a server of {server.kind} beside others of another kind; the same seeds give other "
                "responses there. Use servers of one kind, or set sampler.reproducible=false."
            )
        return model

    async def _check_sglang(self, client: Client, server: Server) -> None:
        if self.settings.sampler.logprobs:
            raise ConfigError(f"{server.url}: SGLang's log-probs are not the policy's own; set sampler.logprobs=false.")
        if self.settings.sampler.reproducible:
            info = await client.fetch("GET", f"{server.url}/server_info", CHECK_S)
            if not info.get("enable_deterministic_inference"):
                raise ConfigError(
                    f"{server.url}: this server takes no seeds; start SGLang with --enable-deterministic-inference or "
                    "set sampler.reproducible=false."
                )

    async def _ask(self, client: Client, server: Server, asked: tuple[list[int], int]) -> list[Sampled]:
        """Return the responses to one prompt."""
        ids, seed = asked
        url = f"{server.url}/v1/completions"
        bodies = request_bodies(self.settings, server.kind, server.model, ids, seed)
        answers = await asyncio.gather(*(client.fetch("POST", url, REQUEST_S, body) for body in bodies))
        return read_answers(server.url, answers, self.settings, seed)
