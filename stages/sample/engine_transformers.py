"""Plain transformers: the same responses interface without vLLM. Slower, fewer moving parts.

One prefill of the prompts, left-padded; its cache is repeated K times and decoded as one batch of prompts × K rows. A
recurrent model prefills each prompt K times.
Each row draws from its own generator by inverting its own cumulative distribution, so a row's tokens depend on the
others through rounding alone. Rows that ended are carried along until the last one ends. A shard that is too large for
one batch is decoded in several.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparring.stages import loaded
from sparring.stages.sample.engine import EngineSettings, Sampled

BATCH_TOKENS = 65_536
"""Of prompts and responses with their padding in one pass: some GB of keys and values, whatever the shard."""


class TransformersEngine:
    """One model on `cpus` cores, or on one GPU."""

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        os.environ["OMP_NUM_THREADS"] = str(settings.workers.cpus)
        import torch
        from transformers import AutoModelForCausalLM

        from sparring.stages.chat import load_tokenizer

        torch.set_num_threads(settings.workers.cpus)
        self.settings = settings
        self.device = "cuda" if settings.workers.gpus else "cpu"
        dtype, more = getattr(torch, settings.sampler.dtype), settings.engine_args

        def make() -> Any:
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **more)
            return model.to(self.device).eval()

        self.model = loaded.kept("policy engine", repr((folder, settings.sampler.dtype, self.device, more)), make)
        self.tokenizer: Any = load_tokenizer(folder) if settings.sampler.stop else None

    def generate(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[Sampled]]:
        """Return K responses for each prompt."""
        import torch

        sampler, k = self.settings.sampler, self.settings.sampler.k
        row_seeds = [seed + i if sampler.reproducible else None for seed in seeds for i in range(k)]
        rows: list[tuple[list[int], list[float]]] = []
        with torch.inference_mode():
            for first, last in groups([len(ids) + sampler.max_tokens for ids in prompt_ids], BATCH_TOKENS // k):
                rows += self._decode(prompt_ids[first:last], row_seeds[first * k : last * k])
        sampled = [
            Sampled(ids, self._ended(ids) or "length", seed, logprobs if sampler.logprobs else None)
            for (ids, logprobs), seed in zip(rows, row_seeds, strict=True)
        ]
        return [sampled[i : i + k] for i in range(0, len(sampled), k)]

    def _ended(self, ids: list[int]) -> str:
        if ids[-1] in self.settings.stop_ids:
            return "stop"
        text = self.tokenizer.decode(ids) if self.settings.sampler.stop else ""
        return "stop_text" if any(one in text for one in self.settings.sampler.stop) else ""

    def _decode(
        self, prompt_ids: Sequence[list[int]], seeds: Sequence[int | None]
    ) -> list[tuple[list[int], list[float]]]:
        """Return (ids, log-probs) of each row."""
        import torch

        generators = [torch.Generator() for _ in seeds]
        for generator, seed in zip(generators, seeds, strict=True):
            generator.seed() if seed is None else generator.manual_seed(seed)
        logits, cache, mask = self._prefill(prompt_ids)
        rows: list[tuple[list[int], list[float]]] = [([], []) for _ in seeds]
        running = set(range(len(rows)))
        while True:
            tokens = self._draw(logits, generators)
            own = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0].tolist()
            for i in running:
                rows[i][0].append(int(tokens[i]))
                rows[i][1].append(own[i])
            running -= {i for i in running if self._ended(rows[i][0])}
            if not running or len(rows[min(running)][0]) == self.settings.sampler.max_tokens:
                return rows
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            output = self.model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
            logits, cache = output.logits[:, -1], output.past_key_values

    def _prefill(self, prompt_ids: Sequence[list[int]]) -> tuple[Any, Any, Any]:
        """Return next-token logits, cache and attention mask of prompts × K rows."""
        import torch

        k = self.settings.sampler.k
        before = k if self.model._is_stateful else 1  # its cache holds more than the keys and values that are repeated
        prompt_ids = [ids for ids in prompt_ids for _ in range(before)]
        width = max(map(len, prompt_ids))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompt_ids], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompt_ids], device=self.device)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        cache, after = output.past_key_values, k // before
        if after > 1:
            cache.batch_repeat_interleave(after)
        return output.logits[:, -1].repeat_interleave(after, 0), cache, mask.repeat_interleave(after, 0)

    def _draw(self, logits: Any, generators: Sequence[Any]) -> Any:
        """Return one token a row. logits: (rows, vocabulary)."""
        import torch

        sampler = self.settings.sampler
        if sampler.temperature == 0:
            return logits.argmax(-1)
        probs = (logits.double() / sampler.temperature).softmax(-1)
        if sampler.min_p > 0:
            probs = probs.masked_fill(probs < sampler.min_p * probs.max(-1, keepdim=True).values, 0.0)
        if sampler.top_p < 1:
            probs = nucleus(probs / probs.sum(-1, keepdim=True), sampler.top_p)
        u = torch.stack([torch.rand((), dtype=torch.float64, generator=g) for g in generators]).to(probs.device)
        total = probs.cumsum(-1)
        drawn = torch.searchsorted(total, u[:, None] * total[:, -1:], right=True)[:, 0]
        return drawn.clamp(max=probs.shape[-1] - 1)


def groups(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of runs of rows of at most `most` tokens with padding; at least one row each."""
    first, longest = 0, 0
    for i, length in enumerate(lengths):
        if i > first and (i + 1 - first) * max(longest, length) > most:
            yield first, i
            first, longest = i, 0
        longest = max(longest, length)
    if lengths:
        yield first, len(lengths)


def nucleus(probs: Any, top_p: float) -> Any:
    """Zero all but the fewest most probable tokens whose mass reaches `top_p`. probs: (rows, vocabulary)."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    return probs.masked_fill(outside.scatter(-1, order, outside), 0.0)
