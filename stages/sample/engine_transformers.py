"""Plain transformers: the same responses interface without vLLM. Slower, fewer moving parts.

One prefill of the prompts, left-padded; its cache is repeated K times and decoded as one batch of prompts × K rows.
Each row draws from its own generator by inverting its own cumulative distribution, so a row's tokens depend on the
others through rounding alone. Rows that ended are carried along until the last one ends.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.sample.engine import Sampled, Settings


class TransformersEngine:
    """One model on `cpus` cores, or on one GPU."""

    def __init__(self, folder: Path, chosen: Settings) -> None:
        os.environ["OMP_NUM_THREADS"] = str(chosen.cpus)
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(chosen.cpus)
        self.chosen = chosen
        self.device = "cuda" if chosen.gpus else "cpu"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, chosen.dtype), local_files_only=True)
        self.model = model.to(self.device).eval()

    def generate(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[Sampled]]:
        """Return K responses for each prompt."""
        import torch

        k = self.chosen.k
        row_seeds = [seed + i for seed in seeds for i in range(k)]
        with torch.inference_mode():
            rows = self._decode(prompt_ids, row_seeds)
        sampled = [Sampled(ids, self._finish(ids), seed) for ids, seed in zip(rows, row_seeds, strict=True)]
        return [sampled[i : i + k] for i in range(0, len(sampled), k)]

    def _finish(self, ids: list[int]) -> str:
        return "stop" if ids[-1] in self.chosen.stop_ids else "length"

    def _decode(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[int]]:
        import torch

        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        logits, cache, mask = self._prefill(prompt_ids)
        rows: list[list[int]] = [[] for _ in seeds]
        running = set(range(len(rows)))
        while True:
            tokens = self._draw(logits, generators)
            for i, token in enumerate(tokens.tolist()):
                if i in running:
                    rows[i].append(token)
            ended = {i for i in running if rows[i][-1] in self.chosen.stop_ids}
            running -= ended
            if not running or len(rows[min(running)]) == self.chosen.max_tokens:
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
        cache = output.past_key_values
        cache.batch_repeat_interleave(self.chosen.k)
        return (
            output.logits[:, -1].repeat_interleave(self.chosen.k, 0),
            cache,
            mask.repeat_interleave(self.chosen.k, 0),
        )

    def _draw(self, logits: Any, generators: Sequence[Any]) -> Any:
        """Return one token a row. logits: (rows, vocabulary)."""
        import torch

        if self.chosen.temperature == 0:
            return logits.argmax(-1)
        probs = (logits.double() / self.chosen.temperature).softmax(-1)
        if self.chosen.top_p < 1:
            probs = nucleus(probs, self.chosen.top_p)
        u = torch.stack([torch.rand((), dtype=torch.float64, generator=g) for g in generators]).to(probs.device)
        total = probs.cumsum(-1)
        drawn = torch.searchsorted(total, u[:, None] * total[:, -1:], right=True)[:, 0]
        return drawn.clamp(max=probs.shape[-1] - 1)


def nucleus(probs: Any, top_p: float) -> Any:
    """Zero all but the fewest most probable tokens whose mass reaches `top_p`. probs: (rows, vocabulary)."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    return probs.masked_fill(outside.scatter(-1, order, outside), 0.0)
