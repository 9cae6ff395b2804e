"""The one forward pass that scores responses, shared by reference and training.

    model = bind(AutoModelForCausalLM.from_pretrained(folder), "float32")
    z, states = forward(model, collate(rows, end_of_turn, "mean", model.shared_up_to, flat=model.flat))

The language-model head runs at the response positions only, in chunks of them: logits of prompts and padding never
exist, those of a whole batch neither. `bind` puts the pass in the place of the module's own `forward`, so that calling
a DeepSpeed engine around the module runs it with ZeRO-3's gathering hooks. Not used: the models' `logits_to_keep`,
which keeps the same positions in all rows.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import is_flash_attn_2_available

from pipeline.errors import DataError
from stages.train import head, packed
from stages.train.reading import Reading
from stages.train.repulsion import pool

SCALED_LOGITS = ("logit_scale", "logits_scaling")
"""Config fields of architectures that scale their logits in their own forward, which this one replaces."""
NAMES = (
    "input_ids",
    "position_ids",
    "attention_mask",
    "lengths",
    "predictors",
    "positions",
    "response_mask",
    "pool_weights",
)
"""What the pass takes of a batch."""


def bind(model: nn.Module, dtype: str) -> nn.Module:
    """Make `model(**batch)` score responses, computing in `dtype` (float32 or bfloat16) on weights as they are.

    bfloat16 is autocast: weights and optimizer stay fp32, so that small steps are not rounded away. Sets
    `model.shared_up_to` and `model.flat` for `collate`. Gemma 2's attention caps its scores, which torch's fused
    attention cannot do and transformers' drops without a word: without flash-attn such a model attends eagerly.
    """
    config: Any = model.config
    for name in SCALED_LOGITS:
        if getattr(config, name, 1.0) != 1.0:
            raise DataError(
                f"{config.model_type}: {name}={getattr(config, name)} scales the logits, which the trainer's forward "
                "pass does not do; choose a policy of another architecture."
            )
    model.scoring_dtype = getattr(torch, dtype)
    if flash_runs(model, dtype):
        model.set_attn_implementation(packed.FLASH)
    elif config._attn_implementation != packed.FLASH and _capped(config):
        model.set_attn_implementation("eager")
    elif shared_up_to(model):
        model.set_attn_implementation(packed.NAME)
    model.flat = config._attn_implementation == packed.FLASH
    model.shared_up_to = shared_up_to(model) if config._attn_implementation == packed.NAME else 0
    head.chunked(model.get_output_embeddings(), getattr(config, "final_logit_softcapping", None))
    model.forward = MethodType(_score, model)
    return model


def shared_up_to(model: nn.Module) -> int:
    """Tokens up to which both responses of a pair may follow one copy of their prompt under a mask; 0: never.

    Only attention takes such a mask, in the form that `collate` gives it: that of `sdpa`, packed or not. A sliding
    window changes nothing for sequences that fit in it.
    """
    config: Any = model.config
    if not _attends(config) or getattr(config, "_attn_implementation", None) not in ("sdpa", packed.NAME):
        return 0
    return getattr(config, "sliding_window", None) or getattr(config, "max_position_embeddings", None) or 0


def flash_runs(model: nn.Module, dtype: str) -> bool:
    """Whether flash-attn computes this model's attention over sequences of any length without padding.

    It needs the package, a GPU and bfloat16, and a model that hands the sequences' ends to its attention function.
    """
    classes: Any = type(model)
    able = classes._supports_flash_attn and classes._supports_attention_backend and _attends(model.config)
    return bool(able and dtype == "bfloat16" and is_flash_attn_2_available())


def _capped(config: Any) -> bool:
    """Whether attention scores are capped (Gemma 2)."""
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def _attends(config: Any) -> bool:
    """Whether all layers are attention that knows a token by its position id."""
    named = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    layers = set(named or ["full_attention"])
    return layers <= {"full_attention", "sliding_attention"} and not getattr(config, "alibi", False)


def forward(model: nn.Module, batch: dict[str, Tensor], reading: Reading | None = None) -> tuple[Tensor, Tensor]:
    """Return z and pooled states of a batch of B pairs through a bound model or an engine around one.

    The batch is that of `collate`. z: (2B,) float64, summed log-probs in nats of exactly the response tokens given all
    tokens before them, chosen first; states: (2B, H) float32, the last hidden states, or those that `reading` names, at
    the tokens' own positions, pooled.
    """
    z, states = model(**{name: batch[name] for name in NAMES}, reading=reading)
    return z, states


def _score(
    self: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor,
    lengths: Tensor,
    predictors: Tensor,
    positions: Tensor,
    response_mask: Tensor,
    pool_weights: Tensor,
    reading: Reading | None = None,
) -> tuple[Tensor, Tensor]:
    bf16 = self.scoring_dtype == torch.bfloat16
    layout = packed.arguments(attention_mask, lengths)

    def trunk() -> Tensor:
        return self.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **layout)[0]

    # Under ZeRO-3 a cached cast would hold the full bf16 model, so the cache is off.
    with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False):
        last, states = reading.through(trunk) if reading else (trunk(),) * 2
        hidden, states = last.flatten(0, 1), states.flatten(0, 1)
        tokens = input_ids.flatten()[positions[response_mask]]
        token_log_probs = self.get_output_embeddings()(hidden[predictors[response_mask]], tokens)
    rows = torch.zeros(response_mask.shape, dtype=torch.float64, device=hidden.device)
    z = rows.masked_scatter(response_mask, token_log_probs.double()).sum(1)
    return z, pool(states[positions], pool_weights)
