"""The one forward pass that scores responses, shared by reference and training.

    model = bind(AutoModelForCausalLM.from_pretrained(folder), "float32")
    z, states = forward(model, batch)

The language-model head runs at the response positions only: logits of prompts and padding never exist. `bind` puts
the pass in the place of the module's own `forward`, so that calling a DeepSpeed engine around the module runs it
with ZeRO-3's gathering hooks. Not used: the models' `logits_to_keep`, which keeps the same positions in all rows.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import DataError
from stages.train.repulsion import pool

SCALED_LOGITS = ("logit_scale", "logits_scaling")
"""Config fields of architectures that scale their logits in their own forward, which this one replaces."""


def bind(model: nn.Module, dtype: str) -> nn.Module:
    """Make `model(**batch)` score responses, computing in `dtype` (float32 or bfloat16) on weights as they are.

    bfloat16 is autocast: weights and optimizer stay fp32, so that small steps are not rounded away.
    """
    config: Any = model.config
    for name in SCALED_LOGITS:
        if getattr(config, name, 1.0) != 1.0:
            raise DataError(
                f"{config.model_type}: {name}={getattr(config, name)} scales the logits, which the trainer's forward "
                "pass does not do; choose a policy of another architecture."
            )
    model.scoring_dtype = getattr(torch, dtype)
    model.forward = MethodType(_score, model)
    return model


def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return z and pooled states of right-padded rows through a bound model or an engine around one.

    batch: input_ids (R, T) int64; attention_mask (R, T); response_mask (R, T) bool, True at response tokens;
    pool_weights (R, T) float32. z: (R,) float64, summed log-probs in nats of exactly the response tokens given all
    tokens before them; states: (R, H) float32, the last hidden states at the tokens' own positions, pooled.
    """
    names = ("input_ids", "attention_mask", "response_mask", "pool_weights")
    z, states = model(**{name: batch[name] for name in names})
    return z, states


def _score(
    self: Any, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, pool_weights: Tensor
) -> tuple[Tensor, Tensor]:
    predicts = response_mask[:, 1:]  # position t predicts token t + 1
    bf16 = self.scoring_dtype == torch.bfloat16
    # Under ZeRO-3 a cached cast would hold the full bf16 model, so the cache is off.
    with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False):
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        logits = self.get_output_embeddings()(hidden[:, :-1][predicts]).float()
    token_log_probs = _log_probs(logits, input_ids[:, 1:][predicts], self.config)
    rows = torch.zeros(predicts.shape, dtype=torch.float64, device=hidden.device)
    z = rows.masked_scatter(predicts, token_log_probs.double()).sum(1)
    return z, pool(hidden, pool_weights)


def _log_probs(logits: Tensor, tokens: Tensor, config: Any) -> Tensor:
    """Log-prob of each token, logits (N, V) fp32, tokens (N,)."""
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return -nn.functional.cross_entropy(logits, tokens, reduction="none")
