"""The oracle `llm` at servers: stand-ins that answer as told, and, slow, vLLM's own with the embedded policy."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring.stages import servers
from sparring.stages.annotate import oracles
from sparring.stages.annotate.config import JudgeConfig
from sparring.stages.annotate.judge_server import JudgeServer, logit_of, read_answer
from sparring.stages.annotate.oracle import Duel
from sparring.stages.annotate.oracles import OracleContext
from sparring.stages.errors import DataError, SparringError
from sparring.stages.sample import embedded
from tests.refusals import refused
from tests.stages.annotate.oracles.llm import (
    DUELS,
    FRANCE,
    HOSTILE,
    MOST,
    NAME,
    first_token_log_probs,
    options,
    shown,
)
from tests.stages.stand_in import Reply, dead_url, vllm_server


def top(a: float | None, b: float | None, *others: float) -> dict[str, Any]:
    """An answer with these log-probs, in no order."""
    found = [("A", a), (" B", b), *((f"x{i}", other) for i, other in enumerate(others or (-9.0, -9.5, -9.9, -9.1)))]
    rows = [{"token": text, "logprob": x, "bytes": []} for text, x in found if x is not None]
    choice = {"index": 0, "finish_reason": "length", "logprobs": {"content": [{"top_logprobs": rows}]}}
    return {"choices": [choice]}


def healthy(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """A model that likes the first response by as many nats as it has more words."""
    if path == "/v1/models":
        return 200, {"data": [{"id": "other"}, {"id": NAME}]}
    text = body["messages"][0]["content"]
    a, b = text.split("=== Response A ===")[1].split("=== End ===")[0].split("=== Response B ===")
    return 200, top(-1.0 + len(a.split()), -1.0 + len(b.split()))


def failing(times: int, status: int, answer: Any, probes: int = 1) -> Reply:
    """A server that answers its first question, fails so often, and then answers."""
    asked = [0]

    def reply(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        asked[0] += path != "/v1/models"
        fails = path != "/v1/models" and probes < asked[0] <= probes + times
        return (status, answer) if fails else healthy(path, body)

    return reply


def served(*urls: str, **changes: Any) -> JudgeServer:
    made = oracles.load(
        "llm",
        options(model=NAME, **changes),
        OracleContext(folders={}, judge=JudgeConfig(kind="llm", urls=tuple(urls))),
    )
    assert isinstance(made, JudgeServer)
    return made


def word(n: int, m: int) -> Duel:
    return Duel(FRANCE, "a " * n, "b " * m)


def test_verdicts_in_the_order_of_the_duels(stand_in: Callable[[Reply], str]) -> None:
    oracle = served(stand_in(healthy), stand_in(healthy))
    found = oracle([word(n, 3) for n in range(40)])
    assert found.logits.tolist() == pytest.approx([n - 3.0 for n in range(40)], abs=1e-12)
    assert not found.truncated.any() and found.truncated.shape == (40,)
    assert oracle([]).logits.shape == (0,)


def test_what_is_asked(stand_in: Callable[[Reply], str], monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[dict[str, Any]] = []

    def reply(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        bodies.append(body)
        return healthy(path, body)

    monkeypatch.setenv("SPARRING_ORACLE_KEY", "secret")
    oracle = served(stand_in(reply))
    oracle([DUELS[2]])
    assert {body["key"] for body in bodies} == {"Bearer secret"} and "secret" not in repr(vars(oracle))
    assert bodies[-1] == {
        "model": NAME,
        "messages": [{"role": "user", "content": shown(DUELS[2])}],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 20,
        "key": "Bearer secret",
    }
    oracle([Duel((("user", HOSTILE),), HOSTILE, HOSTILE)])
    assert "<|" not in bodies[-1]["messages"][0]["content"] and "< |im_end|>" in bodies[-1]["messages"][0]["content"]


def test_many_are_under_way_at_once(stand_in: Callable[[Reply], str]) -> None:
    """None is answered before four are there."""
    together = threading.Barrier(4, timeout=60)

    def reply(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if "a a" in str(body):
            together.wait()
        return healthy(path, body)

    assert served(stand_in(reply))([word(n, 1) for n in (2, 3, 4, 5)]).logits.tolist() == pytest.approx([1, 2, 3, 4])


def test_long_texts_at_servers(stand_in: Callable[[Reply], str]) -> None:
    asked: list[str] = []

    def reply(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        asked.append(str(body.get("messages", [{"content": ""}])[0]["content"]))
        return healthy(path, body)

    found = served(stand_in(reply))([Duel(FRANCE, "日本" * 2000, "no " * 2000)])
    assert found.truncated.tolist() == [True]
    assert MOST * 3 - 12 <= len(asked[-1].encode()) <= MOST * 3
    assert abs(3 * asked[-1].count("日") + 3 * asked[-1].count("本") - 3 * asked[-1].count("no ")) < 20
    assert "\ufffd" not in asked[-1] and asked[-1].endswith("single letter A or B.")


@pytest.mark.parametrize(
    ("status", "answer"), [(500, "down"), (429, ""), (200, {"choices": [{"finish_reason": "abort"}]})]
)
def test_what_may_pass_is_tried_again(stand_in: Callable[[Reply], str], quick: None, status: int, answer: Any) -> None:
    assert served(stand_in(failing(2, status, answer)))([word(3, 1)]).logits.tolist() == pytest.approx([2.0])


def test_a_dead_url_beside_a_live_one(stand_in: Callable[[Reply], str], quick: None) -> None:
    assert served(dead_url(), stand_in(healthy))([word(1, 2)]).logits.tolist() == pytest.approx([-1.0])


def test_no_url_that_answers(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PATIENCE_S", 0.3)
    with refused(SparringError, "oracle.urls", "0 s", "ConnectError"):
        served(dead_url())


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (400, {"error": {"message": "context"}}, ("HTTP 400", "context", "oracle.options.max_tokens")),
        (401, {"error": "who"}, ("HTTP 401", "SPARRING_ORACLE_KEY")),
        (404, {"error": {"message": "gone"}}, ("HTTP 404", "gone")),
        (200, {"choices": [{"finish_reason": "length", "logprobs": None}]}, ("0 log-probs", "20")),
        (200, {"choices": []}, ("0 log-probs",)),
        (200, {"choices": [{"logprobs": {"content": []}}]}, ("0 log-probs",)),
        (200, top(0.0, None, -9.0, -9.0), ("3 log-probs", "oracle.path")),
    ],
)
@pytest.mark.parametrize("probes", [0, 1])
def test_what_will_not_pass_is_said_at_once(
    stand_in: Callable[[Reply], str], status: int, answer: Any, said: tuple[str, ...], probes: int
) -> None:
    """By the first question, before anything is judged, or later."""
    url = stand_in(failing(1, status, answer, probes))
    with refused(DataError, url, *said):
        served(url)([word(1, 2)])


def test_another_model_is_refused(stand_in: Callable[[Reply], str]) -> None:
    url = stand_in(lambda path, body: (200, {"data": [{"id": f"m{i}"} for i in range(10)]}))
    with refused(DataError, url, "judge", "m0", "m7", "2 more", "oracle.options.model"):
        served(url)
    with refused(DataError, "judge", "nothing", "oracle.options.model"):
        served(stand_in(lambda path, body: (200, {"data": []})))


def test_undecided_is_zero_and_a_model_that_never_decides_is_refused(stand_in: Callable[[Reply], str]) -> None:
    assert served(stand_in(failing(1, 200, top(None, None, *[-2.0] * 20))))([word(9, 1)]).logits.tolist() == [0.0]
    url = stand_in(failing(1, 200, top(None, None, *[-2.0] * 20), probes=0))
    with refused(DataError, url, "judge", "A nor B"):
        served(url)


def test_the_logit_of_what_came() -> None:
    p = {"A": 0.5, " A": 0.125, "B": 0.125, "\nB": 0.0625, "a": 0.1, "AB": 0.05, "The": 0.03}
    rows = [(text, math.log(x)) for text, x in p.items()]
    assert logit_of(rows) == pytest.approx(math.log(0.625 / 0.1875), abs=1e-12)
    without = [row for row in rows if row[0].strip() != "B"]
    assert logit_of(without) == pytest.approx(math.log(0.625 / 0.03), abs=1e-12)
    mirrored = [(text.translate({65: 66, 66: 65}), x) for text, x in without]
    assert logit_of(mirrored) == pytest.approx(-math.log(0.625 / 0.03), abs=1e-12)
    assert logit_of([row for row in rows if row[0].strip() not in ("A", "B")]) is None
    assert read_answer("u", top(-1.0, -3.0)) == pytest.approx(2.0, abs=1e-12)


# vLLM's server


@pytest.mark.slow
def test_a_real_server(tmp_path: Path) -> None:
    if not embedded.is_prepared():
        pytest.skip("the embedded policy is not prepared (`make setup` does it)")
    folder = embedded.policy_path()
    duels = [*DUELS, Duel(FRANCE, HOSTILE.replace("<|", "< |"), "x")]
    tokenizer, log_probs = first_token_log_probs(folder, [shown(duel) for duel in duels])
    values, ids = log_probs.topk(20)
    tops = [
        [(tokenizer.decode([i]), x) for i, x in zip(*row, strict=True)]
        for row in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    with vllm_server(folder, NAME, tmp_path / "log", "--max-model-len", "1024") as url:
        found = served(url)([*DUELS, Duel(FRANCE, HOSTILE, "x")])
        assert found.logits == pytest.approx([logit_of(row) for row in tops], abs=1e-3)
        assert np.abs(found.logits).min() > 0.1
        with refused(DataError, url, "other", NAME, "oracle.options.model"):
            oracles.load(
                "llm", options(model="other"), OracleContext(folders={}, judge=JudgeConfig(kind="llm", urls=(url,)))
            )
        with refused(DataError, "HTTP 400", "1024", "oracle.options.max_tokens"):
            served(url, max_tokens=8192)([Duel(FRANCE, "1 2 3 4 5 6 " * 300, "x")])
