"""Attention for batches without padding: everything but attention runs on all tokens of a batch in one row.

    model.set_attn_implementation(NAME)                       once, in `forward.bind`
    model(input_ids=(1, N), **arguments(attention_mask, lengths), ...)

NAME is registered with transformers' own interface, whose attention functions get what a model is called with. Each of
the R lines attends by itself: torch's scaled_dot_product_attention skips no masked block, so that one row of all N
tokens would cost N*N, and lines padded to the longest R*T*T. Without `lengths` it is transformers' `sdpa`. Scores that
a model caps (Gemma 2) are computed here, line by line as well.

FLASH is transformers' own, over plain sequences and where they end. The kernel of flash-attn takes no mask, so the
prompt stands before each of its two responses. It has not been run on a GPU: the tests put another function of the
same signature in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed_sdpa"
FLASH = "flash_attention_2"


def arguments(attention_mask: Tensor, lengths: Tensor) -> dict[str, Any]:
    """What a model is called with beside the tokens of one of `collate`'s layouts, by the shape of its mask."""
    if attention_mask.dim() == 4:
        return {"attention_mask": attention_mask, "lengths": lengths.tolist()}
    if len(attention_mask) == len(lengths):
        return {"attention_mask": attention_mask}
    ends = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    longest = int(lengths.max())
    both = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return {"attention_mask": None, **both}


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    lengths: Sequence[int] | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return (1, N, heads, head_dim) for query, key and value (1, heads, N, head_dim) of R lines one after another.

    attention_mask: (R, 1, T, T) bool, True where a token sees another; lengths: tokens of each line; softcap: the bound
    of the scores, in nats.
    """
    attend = sdpa_attention_forward if softcap is None else partial(_capped, softcap=softcap)
    if lengths is None:
        return attend(module, query, key, value, attention_mask, **kwargs)
    if attention_mask is None:
        raise RuntimeError(f"{type(module).__name__} got no mask: packed lines would see each other")
    outputs = []
    parts = (tensor.split(list(lengths), dim=2) for tensor in (query, key, value))
    for mask, n, q, k, v in zip(attention_mask, lengths, *parts, strict=True):
        output, _ = attend(module, q, k, v, mask[None, :, :n, :n], **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _capped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    softcap: float,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return softmax(softcap tanh(scaling q k' / softcap)) v of each row, (R, T, heads, head_dim).

    query: (R, heads, T, head_dim), key and value of as many heads or fewer; attention_mask: (R, 1, T, T) bool, None for
    a causal one. No dropout. Torch's fused attention has no such cap, and transformers' `sdpa` leaves it out silently.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    if attention_mask is None:
        attention_mask = torch.ones((query.shape[2], key.shape[2]), dtype=torch.bool, device=query.device).tril()
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    unseen = torch.finfo(scores.dtype).min  # not infinite: padding sees nothing at all
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~attention_mask, unseen)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
