"""Tiny random reward models and General Preference Models, with tokenizers and chat templates of real kinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from sparring.stages.annotate.oracle import Duel, Messages
from tests.stages.annotate.blender import SIZES, randomised, tokenizer
from tests.stages.sample.families import FAMILIES, make_tokenizer

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.4,
    "max_position_embeddings": 2048,
}
WORDS = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog", "bridges", "rivers", "engines", "gardens"]
SYSTEM: Messages = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "What is 17 + 4?"))


def prompt(text: str) -> Messages:
    return (("user", text),)


def words(count: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


DUELS = [
    *(Duel(prompt(words(n, n)), words(a, a), words(b, b + 1)) for n, a, b in [(5, 9, 3), (30, 2, 40), (9, 60, 55)]),
    Duel(SYSTEM, "21", ""),
    Duel(prompt("Say <|eot_id|>"), "<|eot_id|>", "no"),
]


def saved(model: Any, words: Any, folder: Path, seed: int = 0) -> Path:
    """Save a model with random weights, and its tokenizer."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm" in name and "gemma" not in str(type(model)).lower()), 0.3, generator=made)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def llama(folder: Path, pad: str | None = None, **more: Any) -> Path:
    """A Llama with one label. `pad`: config.json's pad token."""
    made = make_tokenizer(FAMILIES["llama-3"])
    index = None if pad is None else made.convert_tokens_to_ids(pad)
    config = LlamaConfig(vocab_size=len(made), pad_token_id=index, num_labels=1, **TINY | more)
    return saved(LlamaForSequenceClassification(config), made, folder)


def causal(folder: Path) -> Path:
    made = make_tokenizer(FAMILIES["llama-3"])
    return saved(LlamaForCausalLM(LlamaConfig(vocab_size=len(made), **TINY)), made, folder)


def gemma2(folder: Path) -> Path:
    """A Gemma 2 with one label, whose attention is capped where it matters."""
    made = make_tokenizer(FAMILIES["gemma-2"])
    config = Gemma2Config(vocab_size=len(made), num_labels=1, pad_token_id=0, attn_logit_softcapping=0.5, **TINY)
    return saved(Gemma2ForSequenceClassification(config), made, folder)


def deberta(folder: Path) -> Path:
    """A DeBERTa v3 with one label and no chat template."""
    made = tokenizer()
    model = DebertaV2ForSequenceClassification(DebertaV2Config(vocab_size=len(made), num_labels=1, **SIZES))
    randomised(model, 3)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    """A BERT with one label, segments and 64 positions, and no chat template."""
    return _encoder(
        folder, BertForSequenceClassification, BertConfig, ["input_ids", "token_type_ids", "attention_mask"]
    )


def roberta(folder: Path) -> Path:
    """A RoBERTa with one label, whose 64 positions count from pad_token_id + 1, and no chat template."""
    return _encoder(folder, RobertaForSequenceClassification, RobertaConfig, ["input_ids", "attention_mask"])


def _encoder(folder: Path, kind: Any, config: Any, inputs: list[str]) -> Path:
    made = tokenizer()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=inputs,
    )
    sizes = {
        key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    model = kind(config(vocab_size=len(made), num_labels=1, max_position_embeddings=64, pad_token_id=0, **sizes))
    randomised(model, 4)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


class CustomRewardModel(LlamaForCausalLM):
    """The layout of a published General Preference Model: a causal model's weights and one or two heads beside them."""

    def __init__(self, config: LlamaConfig, width: int = 4, gated: bool = True) -> None:
        super().__init__(config)
        self.value_head = torch.nn.Linear(config.hidden_size, width, bias=False)
        if gated:
            self.prompt_head = torch.nn.Linear(config.hidden_size, width // 2, bias=False)
        self.post_init()


def gpm(folder: Path, family: str = "llama-3", width: int = 4, gated: bool = True) -> Path:
    made = make_tokenizer(FAMILIES[family])
    model = CustomRewardModel(LlamaConfig(vocab_size=len(made), **TINY), width, gated)
    return saved(model, made, folder, seed=1)


def changed(folder: Path, to: Path, weights: dict[str, torch.Tensor | None] | None = None, **config: Any) -> Path:
    """Copy a folder with keys of config.json and weights set; a weight that is None is left out."""
    shutil.copytree(folder, to)
    found = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**found, **config}))
    if weights:
        tensors = load_file(to / "model.safetensors") | weights
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(kept, to / "model.safetensors", metadata={"format": "pt"})
    return to
