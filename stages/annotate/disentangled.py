"""DeBERTa's disentangled attention (He et al., arXiv 2006.03654), of tokens to the contents and places of all tokens.

    softmax_j(scale * (q_i k_j + q_i K[b(i - j)] + Q[b(i - j)] k_j)),   scale = 1 / sqrt(3 d)

q, k: queries and keys; K, Q (buckets, d): the layer's projections of the relative positions; b: the bucket of a
distance. The second term is content to position, the third position to content.

Two forms. `with_bias` gives the two terms to torch's fused attention as a bias, (B, heads, n, length), which the
lookups write and read several times in each layer: on a CPU that is little beside the products. `looked_up` has both
terms looked up inside of one kernel, and holds (B, heads, length, buckets): for CUDA. No GPU has run it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import FlexKernelOptions

TILES: FlexKernelOptions = {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}
"""Queries and keys of a block of the kernel, and how it is run. Compiled for an H100 (Triton 3.7.1, sm_90, bfloat16,
d = 64) on a machine without a GPU, a thread has 40 bytes beside its registers then; 600 with blocks of 64 x 64; 6,384
with torch's own, 128 x 128, and an int64 table."""


class Buckets(NamedTuple):
    """How distances share buckets."""

    each: int
    """Buckets on either side."""
    farthest: int
    """Distances from this one on share the last bucket."""


class Relative(NamedTuple):
    """The relative positions of the tokens of a row."""

    bucket: Tensor
    """int64 (length, length): the bucket of query place minus key place, counted from `low`."""
    low: int
    high: int
    """Buckets low to high - 1 are in use."""


def with_bias(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    queries: Tensor,
    relative: Relative,
    mask: Tensor | None,
    places: Tensor | None,
    scale: float,
) -> Tensor:
    """Return what the queries read, (B, heads, n, d).

    query: (B, heads, n, d); key, value: (B, heads, length, d); keys: (heads, d, 2 * buckets) and
    queries: (heads, 2 * buckets, d), both times `scale`; mask: (B, 1, 1, length), added to all scores;
    places: (B, n) positions of the queries, None: n is length.
    """
    index, low, high = relative
    index = index[None, None] if places is None else index[places][:, None]  # (B or 1, 1, n, length)
    index = index.expand(len(query), query.shape[1], -1, -1)
    to_key = query @ keys[..., low:high]  # (B, heads, n, buckets)
    to_query = queries[:, low:high] @ key.transpose(-1, -2)  # (B, heads, buckets, length)
    bias = to_key.gather(3, index) + to_query.gather(2, index)
    if mask is not None:
        bias = bias + mask
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


def looked_up(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    queries: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """Return what all tokens read, as `with_bias` does with n = length; compiled at the first call.

    table: int32 (2 * farthest + 1,), see `bucket_table`; lengths: int32 (B,), the tokens of each row.
    """
    to_key, to_query = query @ keys, key @ queries.transpose(-1, -2)  # (B, heads, length, 2 * buckets)
    for x in (query, key, value, to_key, to_query):
        torch._dynamo.maybe_mark_dynamic(x, (0, 2))
    torch._dynamo.maybe_mark_dynamic(lengths, 0)
    return _compiled()(query, key, value, to_key, to_query, table, lengths, scale)


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    to_key: Tensor,
    to_query: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """Return what all tokens read; to_key, to_query: (B, heads, length, 2 * buckets)."""
    from torch.nn.attention.flex_attention import flex_attention

    farthest = len(table) // 2

    def with_places(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        bucket = table[(i - j).clamp(-farthest, farthest) + farthest]
        score = score + to_key[b, h, i, bucket] + to_query[b, h, j, bucket]
        return torch.where(j < lengths[b], score, -float("inf"))

    seen: Tensor = flex_attention(query, key, value, score_mod=with_places, scale=scale, kernel_options=TILES)
    return seen


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex)


@lru_cache(maxsize=4)
def relative_positions(length: int, buckets: Buckets, device: torch.device) -> Relative:
    """Return the relative positions of a row of `length` tokens; those of the last lengths are kept."""
    of = bucket_table(buckets)
    places = torch.arange(length)
    index = of[(places[:, None] - places).clamp(-buckets.farthest, buckets.farthest) + buckets.farthest]
    low, high = int(index[0, -1]), int(index[-1, 0]) + 1
    return Relative((index - low).long().to(device), low, high)


@cache
def bucket_table(buckets: Buckets) -> Tensor:
    """Return the row of the relative embeddings for each distance from -farthest to farthest, int32.

    Each near distance has its own row; farther ones share rows by their logarithm, in float32 as in transformers.
    """
    distance = torch.arange(-buckets.farthest, buckets.farthest + 1)
    middle = buckets.each // 2
    far = distance.abs().clamp_min(middle)
    steps = torch.log(far / middle) / torch.log(torch.tensor((buckets.farthest - 1) / middle)) * (middle - 1)
    shared = (torch.ceil(steps) + middle) * distance.sign()
    bucket = torch.where(distance.abs() <= middle, distance, shared.long())
    return (bucket + buckets.each).clamp(0, 2 * buckets.each - 1).int()
