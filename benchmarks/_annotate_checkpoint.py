"""A PairRM with random weights, of DeBERTa-v3's sizes, in the layout of llm-blender/PairRM; and llm-blender."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparring.stages.annotate.pairrm import (
    BACKBONES,
    BODY,
    CANDIDATE_MOST,
    EITHER,
    FIRST,
    HEAD,
    SECOND,
    SOURCE,
    SOURCE_MOST,
)

SIZE: dict[str, Any] = {**BACKBONES["microsoft/deberta-v3-base"], "intermediate_size": 3072, "model_type": "deberta-v2"}
LARGE = {**SIZE, **BACKBONES["microsoft/deberta-v3-large"], "intermediate_size": 4096}
SMALLEST = {**SIZE, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
VOCABULARY = 8000
SHARPENED = ("query_proj.weight", "key_proj.weight")
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
SCALE, SHARP, LAST = 0.03, 0.06, 0.25
"""Standard deviations of the weights, of queries' and keys', and of the head's last layer: attention is not flat then,
and the logits of short texts, less what the order does, spread by about one."""


def llm_blender() -> Any:
    """Import llm-blender 0.0.2 under transformers 5: two names that it needs are put back."""
    import transformers.utils.hub
    from transformers import PreTrainedTokenizerBase

    hub: Any = transformers.utils.hub
    if not hasattr(hub, "TRANSFORMERS_CACHE"):
        hub.TRANSFORMERS_CACHE = "/nonexistent"
    base: Any = PreTrainedTokenizerBase
    if not hasattr(base, "batch_encode_plus"):
        base.batch_encode_plus = lambda self, texts, **options: self(texts, **options)
    import llm_blender as package

    return package


def checkpoint(folder: Path, texts: Iterable[str], size: Mapping[str, Any] = SIZE) -> Path:
    """Write the checkpoint, its backbone in a folder beside it, with a tokenizer trained on the texts."""
    import torch
    from safetensors.torch import save_file

    words = _tokenizer(texts)
    backbone, made = folder / "backbone", folder / "PairRM"
    words.save_pretrained(backbone)
    (backbone / "config.json").write_text(json.dumps({**size, "vocab_size": len(words)}), encoding="utf-8")
    words.add_tokens([SOURCE, FIRST, SECOND, EITHER])
    words.save_pretrained(made)
    config = {
        "ranker_type": "pairranker",
        "model_type": "deberta",
        "model_name": str(backbone),
        "source_maxlength": SOURCE_MOST,
        "candidate_maxlength": CANDIDATE_MOST,
        "n_tasks": 1,
    }
    (made / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rng = torch.Generator().manual_seed(0)
    weights = {name: _random(name, shape, rng) for name, shape in _sizes(len(words), size).items()}
    save_file(weights, made / "model.safetensors")
    body = {name.removeprefix(BODY): tensor for name, tensor in weights.items() if name.startswith(BODY)}
    rows = "embeddings.word_embeddings.weight"
    save_file({**body, rows: body[rows][:-4].clone()}, backbone / "model.safetensors", metadata={"format": "pt"})
    return made


def _tokenizer(texts: Iterable[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers.models.deberta_v2.tokenization_deberta_v2 import DebertaV2Tokenizer

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    vocabulary = [(piece, score) for piece, score in json.loads(made.to_str())["model"]["vocab"]]
    return DebertaV2Tokenizer(vocab=[*vocabulary, ("[MASK]", 0.0)])


def _sizes(vocabulary: int, size: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    from sparring.stages.annotate.deberta import Shape

    h = size["hidden_size"]
    body = Shape.of(size, "DeBERTa-v3-base").tensors(vocabulary, size["intermediate_size"])
    head = {"1.weight": (h, 2 * h), "1.bias": (h,), "4.weight": (1, h), "4.bias": (1,)}
    return {**{BODY + name: size for name, size in body.items()}, **{HEAD + name: size for name, size in head.items()}}


def _random(name: str, size: tuple[int, ...], rng: Any) -> Any:
    import torch

    spread = LAST if name == f"{HEAD}4.weight" else SHARP if name.endswith(SHARPENED) else SCALE
    return torch.randn(size, generator=rng) * spread + float(name.endswith("LayerNorm.weight"))
