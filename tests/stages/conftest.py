"""For all steps: servers that stand in for real ones, and the end of engines that a test ran in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from tests.stages.stand_in import Reply, hurry, stand_ins


@pytest.fixture(scope="module", autouse=True)
def no_engine_left() -> Iterator[None]:
    """End vLLM's process groups while they are there: at exit, others have ended them, and vLLM fails aloud."""
    yield
    vllm = sys.modules.get("vllm.distributed.parallel_state")
    if vllm and sys.modules["torch"].distributed.is_initialized():  # else it takes most of a second to end nothing
        vllm.cleanup_dist_env_and_memory()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def stand_in() -> Iterator[Callable[[Reply], str]]:
    with stand_ins() as start:
        yield start
