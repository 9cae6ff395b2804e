"""Tiny random PairRM checkpoints in both published layouts, and llm-blender's own classes to read them with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import DebertaV2Config, DebertaV2Model
from transformers.models.deberta_v2.tokenization_deberta_v2 import DebertaV2Tokenizer

from sparring.stages.annotate.pairrm import EITHER, FIRST, SECOND, SOURCE

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
STARTER = Path(__file__).parents[3] / "stages" / "sample" / "starter.jsonl"
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "relative_attention": True,
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 256,
    "max_position_embeddings": 512,
    "pos_att_type": ["p2c", "c2p"],
    "layer_norm_eps": 1e-7,
}


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


def texts() -> list[str]:
    return [json.dumps(json.loads(line)) for line in STARTER.read_text().splitlines()]


def tokenizer() -> DebertaV2Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        texts(), trainers.UnigramTrainer(vocab_size=600, special_tokens=list(SPECIAL), unk_token="[UNK]")
    )
    vocabulary = [(piece, score) for piece, score in json.loads(made.to_str())["model"]["vocab"]]
    return DebertaV2Tokenizer(vocab=[*vocabulary, ("[MASK]", 0.0)])


def randomised(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Weights large enough that every part of the model matters."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(name.endswith("LayerNorm.weight")), 0.25, generator=made)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def official(folder: Path, tasks: int = 1) -> Path:
    """The layout of llm-blender/PairRM, its backbone in a folder beside it."""
    words = tokenizer()
    backbone = folder / "backbone"
    DebertaV2Model(DebertaV2Config(vocab_size=len(words), **SIZES)).save_pretrained(backbone)
    words.save_pretrained(backbone)
    checkpoint = folder / "PairRM"
    checkpoint.mkdir()
    config = {
        "ranker_type": "pairranker",
        "model_type": "deberta",
        "model_name": str(backbone),
        "source_maxlength": 1224,
        "candidate_maxlength": 412,
        "n_tasks": tasks,
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    from llm_blender.pair_ranker.config import RankerConfig
    from llm_blender.pair_ranker.model_util import build_collator, build_ranker

    build_collator("pairranker", words, 1224, 412)  # adds the markers
    words.save_pretrained(checkpoint)
    ranker = build_ranker("pairranker", "deberta", str(backbone), None, RankerConfig.from_dict(config), words)
    save_file(randomised(ranker, 0), checkpoint / "model.safetensors")
    return checkpoint


def hf(folder: Path, tasks: int = 1) -> Path:
    """The layout of llm-blender/PairRM-hf."""
    from llm_blender.pair_ranker.pairrm import DebertaV2PairRM

    words = tokenizer()
    words.add_tokens([SOURCE, FIRST, SECOND, EITHER])
    ids = dict(zip(("source", "cand1", "cand2", "cand"), map(words.convert_tokens_to_ids, MARKERS), strict=True))
    more: dict[str, Any] = {f"{name}_prefix_id": value for name, value in ids.items()}
    config = DebertaV2Config(
        vocab_size=len(words), n_tasks=tasks, drop_out=0.05, sep_token_id=words.sep_token_id, **more, **SIZES
    )
    model = DebertaV2PairRM(config)
    randomised(model, 1)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


MARKERS = (SOURCE, FIRST, SECOND, EITHER)
