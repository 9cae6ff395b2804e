"""Tokenizers of the families in conf/policy, small: their control tokens, BOS and kind of pre-tokenizer, trained here.

The templates of Llama, Gemma and Qwen are those that TRL ships for telling models apart; Mistral's is written after the
format of its model card.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CORPUS = [
    "None of this, None",
    "The quick brown fox jumps over the lazy dog, 17 + 4 = 21.\n\n1. one\n\n2. two\n\n\t3",
    "system user assistant model You are a helpful assistant. Cutting Knowledge Date: December 2023 Today Date",
    "emoji and bridges, rivers, engines, gardens, letters and mirrors; word word word",
] * 8


@dataclass(frozen=True)
class Family:
    """What makes a family's tokenizer: `metaspace` is SentencePiece's kind, else byte level."""

    template: str
    controls: tuple[str, ...]
    end_of_turn: str
    bos: str | None
    metaspace: bool
    trims: bool
    """Whether the template strips a message."""
    writes_bos: bool
    """Whether the tokenizer itself writes BOS before a text, beside the template."""


MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
FAMILIES = {
    "llama-3": Family("llama3", LLAMA_TOKENS, "<|eot_id|>", "<|begin_of_text|>", False, True, True),
    "llama-3.1": Family("llama3_1", LLAMA_TOKENS, "<|eot_id|>", "<|begin_of_text|>", False, True, True),
    "gemma-2": Family("gemma", ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "<bos>", True, True, True),
    "qwen2.5": Family("qwen2_5", ("<|im_start|>", "<|im_end|>"), "<|im_end|>", None, False, False, False),
    "mistral": Family(MISTRAL, (), "</s>", "<s>", True, False, True),
}


def template_of(family: Family) -> str:
    """Return the chat template's text."""
    if "{" in family.template:
        return family.template
    found = importlib.util.find_spec("trl")
    assert found is not None and found.origin is not None
    return (Path(found.origin).parent / "chat_templates" / f"{family.template}.jinja").read_text()


def make_tokenizer(family: Family) -> Any:
    """Return a transformers tokenizer of the family's kind."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    eos = "</s>" if family.end_of_turn == "</s>" else "<eos>"
    special = [token for token in (family.bos, eos, *family.controls) if token]
    backend = _metaspace(special) if family.metaspace else _byte_level(special)
    if family.writes_bos:
        bos = str(family.bos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=family.bos, eos_token=eos, additional_special_tokens=list(family.controls)
    )
    tokenizer.chat_template = template_of(family)
    return tokenizer


def _byte_level(special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    return backend


def _metaspace(special: list[str]) -> Any:
    """SentencePiece's kind: spaces are U+2581, what the vocabulary lacks is written in bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *special], show_progress=False)
    )
    content = json.loads(backend.to_str())
    model = content["model"]
    for byte in range(256):
        model["vocab"].setdefault(f"<0x{byte:02X}>", len(model["vocab"]))
    model["byte_fallback"] = True
    backend = Tokenizer.from_str(json.dumps(content))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend
