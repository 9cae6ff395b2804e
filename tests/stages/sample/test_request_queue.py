"""One queue for an engine: nothing waits for a shard's longest response, and every error reaches who asked."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparring.stages.sample.engine import make_engine
from sparring.stages.sample.request_queue import RequestQueue, shards_at_once
from tests.stages.sample.questions import QUESTIONS, SEEDS, engine_settings, ids
from tests.tiny import tiny_policy

AT_ONCE, K, SHARD = 1024, 5, 32


def seconds(shards: list[np.ndarray], under_way: int) -> float:
    """Return how long an engine decodes shards, of which it has so many at a time; lengths by shard.

    A step makes a token of each running response and takes 12 ms, and 12 more at AT_ONCE responses: the weights are
    read once, the keys and values of each.
    """
    coming = iter(enumerate(shards))
    left, waiting, running = dict[int, int](), deque[tuple[int, int]](), list[tuple[int, int]]()
    step, clock = 0, 0.0
    while True:
        while len(left) < under_way and (new := next(coming, None)):
            left[new[0]] = len(new[1])
            waiting += [(new[0], length) for length in new[1].tolist()]
        while waiting and len(running) < AT_ONCE:
            shard, length = waiting.popleft()
            heapq.heappush(running, (step + length, shard))
        if not running:
            return clock
        end, shard = heapq.heappop(running)
        clock += (end - step) * 0.012 * (1 + (len(running) + 1) / AT_ONCE)
        step = end
        left[shard] -= 1
        if not left[shard]:
            del left[shard]


def test_an_engine_is_at_work_nearly_as_if_it_had_all_shards_at_once() -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(450) - 0.32, 0.8, (2500 // SHARD, SHARD * K))
    shards = list(np.clip(lengths, 1, 2048).astype(int))
    assert 400 < np.mean(shards) < 450 and np.max(shards) == 2048
    bound, at_once = seconds(shards, len(shards)), shards_at_once(AT_ONCE, SHARD * K)
    assert at_once == 26 and bound / seconds(shards, at_once) >= 0.95
    assert bound / seconds(shards, 1) < 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Any:
    """As on GPUs: seeds, and shards that share it."""
    made: Any = make_engine("vllm", folder, engine_settings())
    made.alone = False
    return made


def test_threads_share_an_engine_and_each_gets_its_own(engine: Any, prompt_ids: list[list[int]]) -> None:
    whole = engine.generate(prompt_ids, SEEDS)
    with ThreadPoolExecutor(len(prompt_ids)) as threads:
        each = list(threads.map(lambda one, seed: engine.generate([one], [seed])[0], prompt_ids, SEEDS))
    assert len(whole) == len(QUESTIONS) and ids(each) == ids(whole)
    assert engine.queue.pending == {} and not engine.queue.steps


def test_a_prompt_that_is_refused_costs_its_own_shard_alone(engine: Any, prompt_ids: list[list[int]]) -> None:
    with ThreadPoolExecutor(2) as threads:
        wrong = threads.submit(engine.generate, [[5] * 100_000], [0])
        right = threads.submit(engine.generate, prompt_ids, SEEDS)
        assert len(right.result()) == len(prompt_ids)
        assert "100000" in str(wrong.exception())


class Broken:
    """An engine that takes requests and fails at the first step."""

    def __init__(self) -> None:
        self.llm_engine = self
        self.names: list[str] = []

    def enqueue(self, prompts: Iterable[Any], params: Any, use_tqdm: bool) -> list[str]:
        self.names += (added := [f"{len(self.names) + i}-abc" for i, _ in enumerate(prompts)])
        return added

    def step(self) -> list[Any]:
        raise RuntimeError("CUDA error")


def test_an_error_of_the_engine_reaches_all_who_ask_then_and_later() -> None:
    queue, many = RequestQueue(Broken()), [SimpleNamespace(n=K)] * 3
    for _ in range(2):
        with pytest.raises(RuntimeError, match="CUDA error"):
            queue.generate([0, 1, 2], many)
