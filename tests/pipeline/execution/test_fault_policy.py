"""Which rows are found at fault, and when a shard hangs."""

from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from sparring.pipeline.execution import fault_policy
from sparring.pipeline.execution.fault_policy import MOST_POISON, ShardDeadline


def bisect(rows: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> list[int]:
    """Return what the search finds where `fails` says which rows fail together."""
    search = fault_policy.bisect(rows)
    try:
        tried = next(search)
        while True:
            tried = search.send(fails(tried))
    except StopIteration as end:
        return list(end.value)


@given(st.integers(1, 300), st.data())
def test_the_rows_that_fail_alone_are_found(n: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, n - 1), max_size=MOST_POISON))
    assert bisect(range(n), lambda keep: bool(bad & set(keep))) == sorted(bad)


def test_one_row_of_256_costs_few_tries() -> None:
    tried: list[int] = []

    def fails(keep: Sequence[int]) -> bool:
        tried.append(len(keep))
        return 77 in keep

    assert bisect(range(256), fails) == [77]
    assert len(tried) <= 17 and tried[-1] < 256


def test_rows_that_fail_only_together_are_not_at_fault() -> None:
    assert bisect(range(64), lambda keep: len(keep) > 16) == []


def test_a_row_that_fails_once_only_is_not_at_fault() -> None:
    """A worker killed from outside while a single row was tried."""
    left = [True] * 3

    def fails(keep: Sequence[int]) -> bool:
        return 5 in keep and bool(left) and left.pop()

    assert bisect(range(8), fails) == []


def test_it_stops_looking_when_everything_fails() -> None:
    tried: list[Sequence[int]] = []

    def fails(keep: Sequence[int]) -> bool:
        tried.append(keep)
        return True

    assert len(bisect(range(256), fails)) > MOST_POISON
    assert len(tried) < 40


def test_the_seconds_that_a_shard_may_take() -> None:
    deadline = ShardDeadline(900.0)
    assert deadline.allowed_s() == 900
    deadline.record(2.0)
    deadline.record(1.0)
    assert deadline.allowed_s() == 620  # 10 x 2 s, and a load
    deadline.record(100.0)
    assert deadline.allowed_s() == 900


def test_failures_are_alike_but_for_numbers() -> None:
    assert fault_policy.alike("CUDA error at 0x7f3a in step 12", "CUDA error at 0x55 in step 3")
    assert not fault_policy.alike("CUDA error", "head size 16 is not supported")
