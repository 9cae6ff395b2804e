from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler

from sparring.stages.train.batch.collate import COLUMNS, collate
from sparring.stages.train.batch.order import deal, shares
from sparring.stages.train.batch.rows import ResponsePair, join_pairs, join_targets
from tests.stages.train.rig import logprobs_of, sampled, targets_of


def test_tokens_are_exactly_the_sampled_ones() -> None:
    rows = [
        ResponsePair(id="a", prompt=[5, 6], chosen=[7, 2], rejected=[8]),
        ResponsePair(id="b", prompt=[9], chosen=[10], rejected=[11]),
    ]
    apart = collate(rows, (2,), "mean", 0)
    assert apart["input_ids"].tolist() == [[5, 6, 7, 2], [9, 10, 0, 0], [5, 6, 8, 0], [9, 11, 0, 0]]
    assert apart["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    shared = collate(rows, (2,), "mean", 4)
    assert shared["input_ids"].tolist() == [[5, 6, 7, 2, 8, 9, 10, 11]]
    assert shared["position_ids"].tolist() == [[0, 1, 2, 3, 2, 0, 1, 1]]
    assert shared["lengths"].tolist() == [5, 3]
    assert shared["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    for batch in (apart, shared):
        assert batch["response_mask"].int().tolist() == [[1, 1], [1, 0], [1, 0], [1, 0]]
        tokens = batch["input_ids"].flatten()
        assert tokens[batch["positions"]][batch["response_mask"]].tolist() == [7, 2, 10, 8, 11]
        assert tokens[batch["predictors"]][batch["response_mask"]].tolist() == [6, 7, 9, 6, 9]


def test_columns_keep_float64() -> None:
    values = [0.1 + 0.2, 0.2, 0.7, 0.9, -1.5, -2.5, -3.5, -4.5]
    columns: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
    row = ResponsePair(id="a", prompt=[5], chosen=[6], rejected=[7], **columns)
    batch = collate([row], (2,), "mean", 99)
    assert [batch[name].item() for name in COLUMNS] == values


@pytest.mark.parametrize(("response", "expected"), [([7, 8, 2], 2), ([7, 8], 2), ([2, 7], 2), ([2], 1)])
def test_states_are_pooled_over_a_response_without_its_end_of_turn(response: list[int], expected: int) -> None:
    row = ResponsePair(id="a", prompt=[5], chosen=response, rejected=[6])
    weights = collate([row], (2, 99), "mean", 99)["pool_weights"][0]
    assert weights.tolist() == pytest.approx([1 / expected] * expected + [0] * (len(weights) - expected))


def test_join_follows_the_id_not_the_position() -> None:
    samples = sampled(4, parts=1)[0]
    pairs = targets_of(samples).take([2, 0])
    rows, too_long = join_pairs(samples, pairs, 64, "drop")
    source = {row["id"]: row for row in samples.to_pylist()}
    assert [row.id for row in rows] == ["row-002", "row-000"] and too_long == 0
    for row in rows:
        responses = source[row.id]["responses"]
        assert (row.prompt, row.chosen) == (source[row.id]["prompt_ids"], responses[0]["ids"])
        assert row.rejected == responses[2]["ids"]


def test_targets_and_references_are_those_of_the_same_row() -> None:
    samples = sampled(3, parts=1)[0]
    targets = targets_of(samples, target_w=[0.6, 0.7, 0.8])
    scored = targets.take([2, 0, 1])
    reference = logprobs_of(scored, chosen=[-2.0, -0.5, -1.0], rejected=[-20.0, -5.0, -10.0])
    base = logprobs_of(scored, chosen=[-7.0, -8.0, -9.0], rejected=[-20.0, -5.0, -10.0])
    rows, _ = join_targets(samples, targets, {"ref": reference, "base": base}, 64, "drop")
    assert [row.base_w for row in rows] == [-8.0, -9.0, -7.0] and rows[0].base_l == -5.0
    assert {(row.p_wl, row.label) for row in rows} == {(0.8, 0.95)}
    assert [(row.id, row.p_w, row.ref_w, row.ref_l) for row in rows] == [
        ("row-000", 0.6, -0.5, -5.0),
        ("row-001", 0.7, -1.0, -10.0),
        ("row-002", 0.8, -2.0, -20.0),
    ]


def test_what_is_not_there_is_nan() -> None:
    samples = sampled(2, parts=1)[0]
    not_compared = targets_of(samples, target_wl=[None, 0.8])
    (first, second), _ = join_targets(samples, not_compared, {}, 64, "drop")
    assert math.isnan(first.p_wl) and second.p_wl == 0.8
    assert all(math.isnan(getattr(first, name)) for name in ("ref_w", "ref_l", "base_w", "base_l"))


def test_a_prompt_may_have_several_pairs() -> None:
    samples = sampled(2, parts=1)[0]
    both = pa.concat_tables([targets_of(samples), targets_of(samples, rejected=[1, 1], target_w=[0.9, 0.8])])
    reference = logprobs_of(both, chosen=[-1.0, -2.0, -3.0, -4.0], rejected=[0.0] * 4).take([3, 1, 0, 2])
    rows, _ = join_targets(samples, both, {"ref": reference}, 64, "drop")

    found = [(row.id, row.pair, row.ref_w) for row in rows]
    assert found == [("row-000", (0, 2), -1), ("row-001", (0, 2), -2), ("row-000", (0, 1), -3), ("row-001", (0, 1), -4)]
    assert [row.p_w for row in rows[2:]] == [0.9, 0.8]


def test_rows_that_are_too_long_are_dropped_and_counted() -> None:
    samples = sampled(12, parts=1)[0]
    rows, too_long = join_pairs(samples, targets_of(samples), 20, "drop")
    assert 0 < too_long < 12 and len(rows) == 12 - too_long
    assert all(row.length <= 20 for row in rows)


def test_deal_fills_the_last_batch_with_the_epochs_first_rows() -> None:
    order, repeated = deal([1] * 10, epochs=2, global_batch=4, seed=1)
    assert len(order) == 24 and repeated == 4
    for epoch in (order[:12], order[12:]):
        counts = Counter(epoch)
        assert set(counts) == set(range(10))
        assert {row for row, n in counts.items() if n == 2} <= set(epoch[:4])
    assert order[:12] != order[12:]


def test_deal_repeats_fewer_rows_than_a_batch_until_it_is_full() -> None:
    order, repeated = deal([1, 1, 1], epochs=1, global_batch=8, seed=0)
    assert len(order) == 8 and repeated == 5 and set(order) == {0, 1, 2}


def test_deal_depends_on_the_seed_alone() -> None:
    lengths = [int(n) for n in torch.randint(1, 99, (40,), generator=torch.Generator().manual_seed(0))]
    order, _ = deal(lengths, 1, 8, seed=3)
    assert order == deal(lengths, 1, 8, seed=3)[0] != deal(lengths, 1, 8, seed=4)[0]
    for start in range(0, 40, 8):
        batch = [lengths[i] for i in order[start : start + 8]]
        assert batch == sorted(batch)


def test_shares_by_hand() -> None:
    lengths = [10, 20, 30, 40, 50, 60, 1, 2, 3, 4, 5, 6]
    order = [*range(12)]
    assert shares(order, lengths, workers=2, micro_batch=3) == [0, 3, 4, 1, 2, 5, 6, 9, 10, 7, 8, 11]
    assert shares(order, lengths, workers=1, micro_batch=3) == order


@pytest.mark.parametrize(("workers", "micro"), [(1, 4), (2, 1), (2, 4), (4, 2), (8, 1), (8, 4), (8, 8)])
def test_workers_wait_little_for_each_other(workers: int, micro: int) -> None:
    """Through accelerate's own sampler: at each time the longest micro-batch has at most a tenth above the mean."""
    lengths = [int(n) for n in torch.randint(240, 900, (640,), generator=torch.Generator().manual_seed(0))]
    dealt, _ = deal(lengths, 1, 64, seed=3)
    order = shares(dealt, lengths, workers, micro)
    for start in range(0, 640, 64):
        assert sorted(order[start : start + 64]) == sorted(dealt[start : start + 64])
    batches = BatchSampler(SequentialSampler(order), micro, drop_last=False)
    ranks = [list(BatchSamplerShard(batches, workers, rank)) for rank in range(workers)]
    waited = total = 0
    for step in zip(*ranks, strict=True):
        tokens = [sum(lengths[order[i]] for i in batch) for batch in step]
        waited, total = waited + workers * max(tokens), total + sum(tokens)
    assert total == sum(lengths) and waited / total < 1.1
