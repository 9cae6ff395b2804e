"""Parts of a parameter, by hand. The whole way through a checkpoint: test_resilience.py."""

from __future__ import annotations

import pytest
import torch

from sparring.stages.train.files.reshard import cut, part_of


def test_parts_by_hand() -> None:
    whole = torch.arange(5.0)
    assert [part_of(whole, 2, rank).tolist() for rank in range(2)] == [[0, 1, 2], [3, 4, 0]]
    assert [part_of(whole, 4, rank).tolist() for rank in range(4)] == [[0, 1], [2, 3], [4, 0], [0, 0]]


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_parts_one_after_another_are_the_whole(size: int, workers: int) -> None:
    whole = torch.arange(float(size))
    parts = [part_of(whole, workers, rank) for rank in range(workers)]
    assert {len(part) for part in parts} == {-(-size // workers)}
    assert torch.equal(torch.cat(parts)[:size], whole)


def test_values_are_found_in_the_tensor_that_holds_them() -> None:
    flats = [torch.arange(4.0), torch.arange(4.0, 10.0)]
    assert cut(flats, 1, 3).tolist() == [1, 2, 3]
    assert cut(flats, 4, 2).tolist() == [4, 5]
    assert cut(flats, 7, 3).tolist() == [7, 8, 9]
