"""Disentangled attention: both forms against the formula, number by number."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sparring.stages.annotate.disentangled import (
    Buckets,
    bucket_table,
    flex,
    looked_up,
    relative_positions,
    with_bias,
)

BUCKETS = Buckets(each=6, farthest=12)
HEADS, D = 2, 16
SCALE = 1 / math.sqrt(3 * D)


class Made(NamedTuple):
    """Random inputs."""

    query: Tensor
    key: Tensor
    value: Tensor
    keys: Tensor
    queries: Tensor


def made(length: int, rows: int = 3) -> Made:
    drawn = torch.Generator().manual_seed(length)
    sizes = [(rows, HEADS, length, D)] * 3 + [(HEADS, D, 2 * BUCKETS.each), (HEADS, 2 * BUCKETS.each, D)]
    return Made(*(torch.randn(size, generator=drawn) for size in sizes))


def mask_of(lengths: Tensor, longest: int) -> Tensor:
    missing = torch.arange(longest)[None] >= lengths[:, None]
    return torch.zeros(missing.shape).masked_fill(missing, torch.finfo(torch.float32).min)[:, None, None]


def by_formula(x: Made, lengths: Tensor) -> Tensor:
    """The formula, with a loop over rows, heads, queries and keys."""
    table = bucket_table(BUCKETS)
    seen = torch.zeros_like(x.query)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in x.query.shape[:3])).tolist():
        q, scores = x.query[b, h, i], []
        for j in range(int(lengths[b])):
            bucket = table[max(-BUCKETS.farthest, min(BUCKETS.farthest, i - j)) + BUCKETS.farthest]
            k = x.key[b, h, j]
            scores.append(SCALE * (q @ k) + q @ x.keys[h, :, bucket] + x.queries[h, bucket] @ k)
        seen[b, h, i] = torch.softmax(torch.stack(scores), 0) @ x.value[b, h, : len(scores)]
    return seen


@pytest.mark.parametrize("lengths", [[1], [30, 30, 30], [30, 7, 1]])
def test_both_forms_are_the_formula(lengths: list[int]) -> None:
    """With distances in their own buckets, in shared ones and beyond the farthest."""
    x, rows = made(max(lengths), len(lengths)), torch.tensor(lengths)
    wanted = by_formula(x, rows)
    relative = relative_positions(max(lengths), BUCKETS, x.query.device)
    assert torch.allclose(with_bias(*x, relative, mask_of(rows, max(lengths)), None, SCALE), wanted, atol=1e-5)
    to_key, to_query = x.query @ x.keys, x.key @ x.queries.transpose(-1, -2)
    found = flex(x.query, x.key, x.value, to_key, to_query, bucket_table(BUCKETS), rows, SCALE)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_some_tokens_alone_read_what_they_read_among_all() -> None:
    x, lengths = made(30), torch.tensor([30, 12, 20])
    relative, mask = relative_positions(30, BUCKETS, x.query.device), mask_of(lengths, 30)
    whole = with_bias(*x, relative, mask, None, SCALE)
    places = torch.tensor([[0, 29], [3, 11], [19, 0]])
    at = places[:, None, :, None].expand(-1, HEADS, -1, D)
    found = with_bias(x.query.gather(2, at), *x[1:], relative, mask, places, SCALE)
    assert torch.allclose(found, whole.gather(2, at), atol=1e-6)


@pytest.mark.slow
def test_the_kernel_is_compiled_once_for_all_sizes() -> None:
    """By torch's compiler for CPUs; what it makes for CUDA, no GPU has run."""
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    with torch.inference_mode():
        for length, rows in ((40, 3), (300, 2), (129, 5), (64, 4)):
            x, lengths = made(length, rows), torch.arange(length - rows, length, dtype=torch.int32) + 1
            relative = relative_positions(length, BUCKETS, x.query.device)
            wanted = with_bias(*x, relative, mask_of(lengths, length), None, SCALE)
            found = looked_up(*x, bucket_table(BUCKETS), lengths, SCALE)
            assert torch.allclose(found, wanted, atol=1e-5)
    assert counted["unique_graphs"] - before == 1
