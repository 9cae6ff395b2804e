"""The next size to measure, the choice, what ran out of memory: pure. The probe itself: test_resilience.py."""

from __future__ import annotations

import pytest
import torch

from sparring.stages.train import memory
from sparring.stages.train.trainer.micro_batch import Pass, fastest, next_size

GB, CPU = 1e9, torch.device("cpu")


def passes(*sizes: tuple[int, float, float]) -> list[Pass]:
    return [Pass(pairs=n, seconds=seconds, grown=grown) for n, seconds, grown in sizes]


def test_sizes_double_within_the_share() -> None:
    assert next_size(12, [], 1, 1) == 1
    assert next_size(12, passes((1, 1, 0)), 1, 99) == 2
    assert next_size(12, passes((1, 1, 0), (2, 1.5, 0)), 1, 99) == 4
    assert next_size(12, passes((2, 1.5, 0), (4, 2, 0)), 1, 99) == 12
    assert next_size(12, passes((4, 2, 0), (12, 5, 0)), 1, 99) is None
    assert next_size(7, passes((1, 1, 0)), 1, 99) == 7


def test_what_would_not_fit_is_not_tried() -> None:
    # 1 GB and 1.5 GB: half a GB a pair, so 4 pairs take 2.5 GB, of which 0.8 must be there
    seen = passes((1, 1, 1 * GB), (2, 1.5, 1.5 * GB))
    assert next_size(8, seen, 3.2 * GB, 99) == 4
    assert next_size(8, seen, 3.1 * GB, 99) is None
    assert next_size(8, passes((1, 1, 1 * GB)), 2.4 * GB, 99) is None  # through 0: 2 GB


def test_what_is_slower_or_takes_too_long_is_not_followed() -> None:
    assert next_size(8, passes((1, 1, 0), (2, 2.2, 0)), 1, 99) is None
    assert next_size(8, passes((1, 1, 0), (2, 2.0, 0)), 1, 99) == 4
    assert next_size(8, passes((1, 1, 0), (2, 2.0, 0)), 1, 3.9) is None


def test_the_smallest_of_the_fastest_is_chosen() -> None:
    assert fastest(passes((1, 1.0, 0), (2, 1.3, 0), (4, 2.3, 0), (8, 4.5, 0))).pairs == 4
    assert fastest(passes((1, 1.0, 0), (2, 1.96, 0))).pairs == 1


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    assert memory.out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.out_of_memory(caught.value)
    assert not memory.out_of_memory(RuntimeError("shapes do not match"))


def test_the_peak_counts_what_is_gone_again() -> None:
    with memory.peak(CPU) as grown:
        torch.ones(2**26)  # 256 MiB
    assert 0.9 * 2**28 < grown[0] < 1.5 * 2**28
    assert memory.available(CPU) > 2**28
