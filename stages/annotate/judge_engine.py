"""A language model as the judge, run by vLLM in this process; see oracles/llm.py.

vLLM returns the log-probs of the tokens named by `logprob_token_ids`, whatever their rank and before any logits
processor: the logit is exact. The model's own chat template renders the question; a control token spelled in a prompt
or response stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sparring.stages import loaded
from sparring.stages.annotate.oracle import Duel, Verdicts
from sparring.stages.annotate.question import fitted
from sparring.stages.annotate.reader import weight_files
from sparring.stages.chat import Chat, load_chat
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.model_folder import read_json
from sparring.stages.vllm import EVERYWHERE, import_vllm, on_cpu, on_gpus

KV_CACHE_GB = 2
"""Of vLLM on a CPU."""
GPU_MEMORY = 0.9
"""The share of a GPU's memory that vLLM takes, its own default."""


class JudgeEngine:
    """A chat model's folder. An oracle: no prompt of its training is known."""

    trained_on: frozenset[int] = frozenset()

    def __init__(self, folder: Path, template: str, max_tokens: int, *, dtype: str, cpus: int, gpus: int) -> None:
        _check(folder, max_tokens)
        make_llm = import_vllm(cpus)  # before the tokenizer imports transformers: that is quicker
        self.template, self.max_tokens = template, max_tokens
        self.chat = load_chat(folder)
        self.letters = tuple(letter_ids(self.chat, letter, folder) for letter in "AB")
        # `fitted` returns the question whose length it computed last: one cached result is enough.
        self.ids = lru_cache(maxsize=1)(lambda question: self.chat.render([{"role": "user", "content": question}]))

        def make() -> Any:
            hardware = on_gpus(gpus, GPU_MEMORY) if gpus else on_cpu(max_tokens + 1, KV_CACHE_GB)
            own = {"dtype": dtype, "max_model_len": max_tokens + 1, "load_format": "safetensors"}
            return make_llm(str(folder), skip_tokenizer_init=True, seed=0, **EVERYWHERE, **own, **hardware)

        self.llm = loaded.kept("judge engine", (folder, max_tokens, dtype, cpus, gpus), make)

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Return log P(A) - log P(B) for each duel, and whether a text of it was truncated."""
        questions, truncated = [], []
        for duel in duels:
            question, cut = fitted(self.template, duel, self.max_tokens, lambda text: len(self.ids(text)), self._head)
            questions.append(self.ids(question))
            truncated.append(cut)
        return Verdicts(self._logits(questions), np.array(truncated, dtype=bool))

    def _logits(self, questions: Sequence[list[int]]) -> np.ndarray:
        """Return the logits (n,) of questions as token ids. The prefix cache starts empty: no shard affects another."""
        from vllm import SamplingParams

        wanted = [i for ids in self.letters for i in ids]
        params = SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=wanted, detokenize=False)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests of the last shard are still running")
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in questions], params, use_tqdm=False)
        logprobs = [output.outputs[0].logprobs[0] for output in outputs]
        a, b = (
            np.array([np.logaddexp.reduce([one[i].logprob for i in ids]) for one in logprobs], dtype=np.float64)
            for ids in self.letters
        )
        return a - b

    def _head(self, text: str, tokens: int) -> str:
        """Return the text of the first tokens of `text`, tokenized as plain text."""
        encoded = self.chat.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        ends = [end for _, end in encoded["offset_mapping"][:tokens]]
        return text[: ends[-1]] if ends else ""


def check_folder(folder: Path, max_tokens: int) -> None:
    """Raise for a folder without a chat template or the letters, or whose model has too short a context."""
    _check(folder, max_tokens)
    for letter in "AB":
        letter_ids(load_chat(folder), letter, folder)


def letter_ids(chat: Chat, letter: str, folder: Path) -> list[int]:
    """Return every token that is `letter` but for white space around it; DataError when there is none."""
    ids = [i for i in range(len(chat.tokenizer)) if i not in chat.control_ids]
    texts = chat.tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    matching = [i for i, text in zip(ids, texts, strict=True) if text.strip() == letter]
    if not matching:
        raise DataError(f"{folder}: its tokenizer has no token {letter}; oracle=llm needs another model.")
    return matching


def _check(folder: Path, max_tokens: int) -> None:
    """Raise for a folder without safetensors, or whose model's context is too short for question and answer."""
    weight_files(folder)
    path = folder / "config.json"
    context = read_json(path).get("max_position_embeddings")
    if context is not None and max_tokens >= context:
        raise ConfigError(
            f"oracle.options.max_tokens={max_tokens}: the judge's context has {context} tokens ({path}), one of them "
            f"for its answer; use {context - 1} or less."
        )
