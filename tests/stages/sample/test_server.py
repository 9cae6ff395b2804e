"""The engine for servers against stand-ins: one that fails as servers do, one that answers as SGLang's source says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparring.stages import servers
from sparring.stages.errors import ConfigError, DataError, SparringError
from sparring.stages.sample import engine_server
from sparring.stages.sample.engine import Sampled
from sparring.stages.sample.engine_server import read_answers, request_bodies
from tests.refusals import refused
from tests.settings import changed
from tests.stages.sample.questions import END, engine_settings
from tests.stages.sample.served import NAME, engine
from tests.stages.stand_in import Reply, dead_url


def healthy(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """A server whose response to the prompt [p, ...] with seed s are the ids [p, s + i, END]; choices in disorder."""
    if path == "/v1/models":
        return 200, {"data": [{"id": NAME, "root": "elsewhere", "owned_by": "vllm"}]}
    choices = [
        {"index": i, "finish_reason": "stop", "token_ids": [body["prompt"][0], body["seed"] + i, END]}
        for i in range(body["n"])
    ]
    return 200, {"choices": choices[::-1]}


def failing(times: int, status: int, answer: Any) -> Reply:
    """A server that fails so often before it answers a prompt."""
    left = [times]

    def reply(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models" or left[0] == 0:
            return healthy(path, body)
        left[0] -= 1
        return status, answer

    return reply


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (500, {"error": {"message": "engine died"}}),
        (503, "<html>"),
        (429, ""),
        # as a server that shuts down ends what it has
        (200, {"choices": [{"index": 0, "finish_reason": "abort", "token_ids": []}]}),
    ],
)
def test_what_may_pass_is_tried_again(
    stand_in: Callable[[Reply], str], tmp_path: Path, quick: None, status: int, answer: Any
) -> None:
    served = engine(tmp_path, stand_in(failing(2, status, answer)), k=1)
    assert served.generate([[7], [8]], [10, 20]) == [
        [Sampled([7, 10, END], "stop", 10)],
        [Sampled([8, 20, END], "stop", 20)],
    ]


def test_order_whatever_comes_first(stand_in: Callable[[Reply], str], tmp_path: Path) -> None:
    def slow_first(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.2 / body["prompt"][0] if "prompt" in body else 0)
        return healthy(path, body)

    served = engine(tmp_path, stand_in(slow_first), stand_in(slow_first), k=2)
    found = served.generate([[p] for p in range(1, 21)], list(range(0, 200, 10)))
    assert [[one.ids[:2] for one in responses] for responses in found] == [
        [[p, 10 * p - 10], [p, 10 * p - 9]] for p in range(1, 21)
    ]


def test_the_others_do_the_work_of_one_that_fails_and_it_comes_back(
    stand_in: Callable[[Reply], str], tmp_path: Path, quick: None
) -> None:
    seen = {"good": 0, "bad": 0}
    down = [False]

    def good(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        seen["good"] += "prompt" in body
        return healthy(path, body)

    def bad(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        seen["bad"] += "prompt" in body
        return (502, "down") if down[0] else healthy(path, body)

    served = engine(tmp_path, stand_in(good), stand_in(bad), k=1)
    prompts, seeds = [[p] for p in range(40)], list(range(40))
    whole = served.generate(prompts, seeds)
    assert min(seen.values()) > 5  # both share the work
    down[0] = True
    assert served.generate(prompts, seeds) == whole
    before, down[0] = seen["bad"], False
    time.sleep(0.1)
    assert served.generate(prompts, seeds) == whole
    assert seen["bad"] > before


def test_a_server_that_comes_back_with_another_policy_is_refused(
    stand_in: Callable[[Reply], str], tmp_path: Path, quick: None
) -> None:
    restarted: list[bool] = []

    def reply(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "new" if restarted else NAME, "owned_by": "vllm"}]}
        restarted.append(True)
        return 502, "restarting"

    served = engine(tmp_path, stand_in(reply), k=1)
    with refused(DataError, "new (None)", NAME):
        served.generate([[1]], [0])


def test_no_url_that_answers(
    stand_in: Callable[[Reply], str], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "PATIENCE_S", 0.6)
    one, two = dead_url(), stand_in(lambda path, body: (503, {"error": {"message": "loading"}}))
    begun = time.monotonic()
    with refused(SparringError, f"{one}: ConnectError", f"{two}: HTTP 503: loading", "1 s"):
        engine(tmp_path, one, two)
    assert time.monotonic() - begun < 30
    served = engine(tmp_path, stand_in(failing(10**6, 500, "no\nmore")), k=1)
    with refused(SparringError, "HTTP 500: no"):
        served.generate([[1], [2]], [0, 1])


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (400, {"error": {"message": "too long"}}, ("HTTP 400: too long",)),
        (401, {"error": "Unauthorized"}, ("HTTP 401", "Unauthorized", "SPARRING_SERVER_KEY")),
        (200, "<html>a proxy", ("HTTP 200: <html>a proxy",)),
        (200, {"choices": []}, ("0 responses", "1")),
        (200, {"choices": [{"index": 0, "finish_reason": "stop", "text": "hi"}]}, ("token ids",)),
    ],
)
def test_what_will_not_pass_is_said_at_once(
    stand_in: Callable[[Reply], str], tmp_path: Path, status: int, answer: Any, said: tuple[str, ...]
) -> None:
    served = engine(tmp_path, stand_in(failing(1, status, answer)), k=1)
    with refused(DataError, *said):
        served.generate([[1]], [0])


def test_no_other_server(stand_in: Callable[[Reply], str], tmp_path: Path) -> None:
    listed = {"data": [{"id": NAME, "owned_by": "library"}]}
    with refused(DataError, "library", "sampler=server"):
        engine(tmp_path, stand_in(lambda path, body: (200, listed)))


def sglang(*, takes_seeds: bool) -> Reply:
    """As sglang 0.5.23: one model, named by its folder or --served-model-name; equal seeds draw equal noise."""

    def reply(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": NAME, "root": NAME, "owned_by": "sglang"}]}
        if path == "/server_info":
            return 200, {"enable_deterministic_inference": takes_seeds}
        if body["top_k"] == 0:
            return 400, {"message": "top_k must be -1 (disable) or at least 1, got 0."}
        choice = {"finish_reason": "stop", "matched_stop": END, "token_ids": [*body["prompt"], body["seed"], END]}
        return 200, {"choices": [{"index": i, **choice} for i in range(body["n"])]}

    return reply


def test_sglang_has_a_request_for_each_response(stand_in: Callable[[Reply], str], tmp_path: Path) -> None:
    served = engine(tmp_path, stand_in(sglang(takes_seeds=True)), k=3)
    assert served.generate([[7], [8]], [10, 20]) == [
        [Sampled([7, 10 + i, END], "stop", 10 + i) for i in range(3)],
        [Sampled([8, 20 + i, END], "stop", 20 + i) for i in range(3)],
    ]
    free = engine(tmp_path, stand_in(sglang(takes_seeds=True)), k=3, reproducible=False).generate([[7]], [10])[0]
    assert len({tuple(one.ids) for one in free}) == 3 and all(one.seed is None for one in free)


def test_servers_of_two_kinds_share_no_seeds(stand_in: Callable[[Reply], str], tmp_path: Path) -> None:
    urls = stand_in(healthy), stand_in(sglang(takes_seeds=True))
    with refused(ConfigError, "sampler.reproducible=false"):
        engine(tmp_path, *urls).generate([[7]], [10])
    assert engine(tmp_path, *urls, reproducible=False).servers[1].kind == "sglang"


def test_sglang_and_what_it_cannot_do(stand_in: Callable[[Reply], str], tmp_path: Path) -> None:
    url = stand_in(sglang(takes_seeds=False))
    with refused(ConfigError, url, "--enable-deterministic-inference", "sampler.reproducible=false"):
        engine(tmp_path, url)
    assert len(engine(tmp_path, url, k=2, reproducible=False).generate([[7]], [10])[0]) == 2
    with refused(ConfigError, url, "sampler.logprobs=false"):
        engine(tmp_path, url, logprobs=True)
    with refused(DataError, f"`python -m sglang.launch_server --model-path {tmp_path} "):
        engine(tmp_path, url, policy_name="sparring-00000000", reproducible=False)


def test_every_url_is_checked(stand_in: Callable[[Reply], str], tmp_path: Path) -> None:
    other = stand_in(lambda path, body: (200, {"data": [{"id": "other", "root": "x", "owned_by": "vllm"}]}))
    with refused(DataError, other, "other (x)"):
        engine(tmp_path, stand_in(healthy), other)


def test_the_key_is_sent(stand_in: Callable[[Reply], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str | None] = []

    def reply(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        keys.append(body["key"])
        return healthy(path, body)

    url = stand_in(reply)
    engine(tmp_path, url, k=1).generate([[1]], [0])
    monkeypatch.setenv(engine_server.KEY, "secret\n")
    served = engine(tmp_path, url, k=1)
    served.generate([[1]], [0])
    assert keys == [None, None, "Bearer secret", "Bearer secret"]
    assert "secret" not in repr(vars(served))
    monkeypatch.setenv(engine_server.KEY, "sec\nret")
    with refused(ConfigError, "SPARRING_SERVER_KEY"):
        engine(tmp_path, url)


def test_a_request_leaves_nothing_to_the_server() -> None:
    chosen = engine_settings(k=3, temperature=0.7, top_p=0.9, min_p=0.1, stop=("\n\n",), logprobs=True)
    assert request_bodies(chosen, "vllm", NAME, [5, 6], 40) == [
        {
            "model": NAME,
            "prompt": [5, 6],
            "n": 3,
            "max_tokens": 24,
            "temperature": 0.7,
            "top_p": 0.9,
            "min_p": 0.1,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": 40,
            "stop": ["\n\n"],
            "stop_token_ids": [END],
            "logprobs": 0,
            "return_token_ids": True,
        }
    ]
    (body,) = request_bodies(changed(chosen, reproducible=False, logprobs=False), "vllm", NAME, [5, 6], 40)
    assert (body["seed"], body["logprobs"]) == (None, None)


def test_an_answer_is_read_by_index() -> None:
    choices = [
        {"index": 1, "finish_reason": "stop", "token_ids": [8, 9], "logprobs": {"token_logprobs": [-3.0, -4.0]}},
        {"index": 0, "finish_reason": "length", "token_ids": [6, 7], "logprobs": {"token_logprobs": [-1.0, -2.0]}},
    ]
    chosen = engine_settings(k=2, max_tokens=2, logprobs=True, stop=("x",))
    assert read_answers("u", [{"choices": choices}], chosen, 40) == [
        Sampled([6, 7], "length", 40, [-1.0, -2.0]),
        Sampled([8, 9], "stop_text", 41, [-3.0, -4.0]),
    ]
    free = changed(chosen, reproducible=False, logprobs=False)
    assert [(one.seed, one.logprobs) for one in read_answers("u", [{"choices": choices}], free, 40)] == [
        (None, None)
    ] * 2
