"""`sparring judge mt_bench`: a stand-in for a server grades, its replies are kept, and what is wrong is one message."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.suites import results
from sparring.pipeline.suites.mt_bench import read_replies
from sparring.stages.evaluate.suites.mt_bench import PROMPTS
from tests.pipeline.suites.served import Row, Server, serving
from tests.refusals import named


def rating(server: Server, asked: Row) -> Row:
    """Rate an answer by the number in it."""
    number = re.findall(r"say (\d+)", asked["messages"][-1]["content"])[-1]
    said = "hm" if server.no_answer_to(asked) else f"So so. Rating: [[{number}]]"
    return {"choices": [{"message": {"role": "assistant", "content": said}}]}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving("org/judge", rating) as found:
        yield found


def dump(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def answer(number: int, *turns: str, model: str = "ours") -> Row:
    return {"question_id": number, "model_id": model, "choices": [{"index": 0, "turns": list(turns)}]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite of two questions, with answers."""
    monkeypatch.chdir(tmp_path)
    questions = [
        {"question_id": i, "category": name, "turns": ["q1?", "q2?"]} for i, name in ((1, "writing"), (2, "math"))
    ]
    dump(tmp_path / "questions.jsonl", questions)
    templates = {
        "single-v1": "{question} A: {answer}",
        "single-math-v1": "{question} ref {ref_answer_1} A: {answer}",
        "single-v1-multi-turn": "{question_1} {answer_1} {question_2} A: {answer_2}",
        "single-math-v1-multi-turn": "{ref_answer_1} {ref_answer_2} {question_1} {answer_1} {question_2} A: {answer_2}",
    }
    assert set(templates) == set(PROMPTS)
    prompts = [
        {"name": name, "system_prompt": f"You are {name}.", "prompt_template": t} for name, t in templates.items()
    ]
    dump(tmp_path / "prompts.jsonl", [{"name": "pair-v2", "system_prompt": "", "prompt_template": ""}, *prompts])
    dump(tmp_path / "reference.jsonl", [answer(2, "R1", "R2", model="gpt-4")])
    dump(tmp_path / "answers.jsonl", [answer(2, "say 4", "say 2"), answer(1, "say 9\x1b[31m", "say 7")])
    return tmp_path


def words(server: Server | None, *more: str) -> list[str]:
    files = ["--questions", "questions.jsonl", "--judge-prompts", "prompts.jsonl", "--reference", "reference.jsonl"]
    port = server.server_address[1] if server else 9
    return ["judge", "mt_bench", "answers.jsonl", *files, "--base-url", f"http://127.0.0.1:{port}/v1", *more]


def test_turns_average_and_categories(folder: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(server, "--json", "figures.json")) == 0
    figures = json.loads((folder / "figures.json").read_text())
    assert [figures[name]["mean"] for name in ("turn_1", "turn_2", "average")] == [6.5, 4.5, 5.5]
    assert (figures["average"]["low"], figures["average"]["high"]) == (3.0, 8.0)
    assert figures["categories"]["math"] == {"turn_1": 4.0, "turn_2": 2.0, "average": 3.0, "rated": 2}
    assert (figures["model"], figures["judge"], figures["unrated"]) == ("ours", "org/judge", 0)
    said = capsys.readouterr().out
    assert "average 5.50  [3.00, 8.00]  4 ratings" in said and "these are 2 questions, the suite has 80" in said
    assert results.read(folder).results == [], "nothing says whose answers they are"
    whose = results.About(iteration=2, policy="ab")
    results.write_about(folder / "answers.jsonl", whose)
    assert main(words(server)) == 0
    (shown,) = results.read(folder).results
    assert (shown.suite, shown.judge, shown.model, shown.about) == ("MT-Bench", "org/judge", "ours", whose)
    assert shown.scores["average, 1 to 10"].text == "5.50 [3.00, 8.00]" and len(shown.scores) == 3
    assert shown.notes == ["these are 2 questions, the suite has 80: not the published figure"]
    assert {(one["model"], one["temperature"], one["max_tokens"]) for one in server.asked} == {("org/judge", 0, 2048)}
    told = {one["messages"][0]["content"]: one["messages"][1]["content"] for one in server.asked}
    assert told["You are single-math-v1."] == "q1? ref R1 A: say 4"
    assert told["You are single-math-v1-multi-turn."] == "R1 R2 q1? say 4 q2? A: say 2"
    assert told["You are single-v1-multi-turn."] == "q1? say 9\x1b[31m q2? A: say 7"


def test_replies_are_kept_and_what_is_unrated_is_asked_again(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.mumbles = "A: say 7"
    assert main(words(server)) == 0
    said = capsys.readouterr().out
    assert "4 of 4 asked now" in said and "turn 2  2.00  [2.00, 2.00]  1 ratings" in said
    assert "WARNING: 1 replies have no rating (turn 1: 0, turn 2: 1) and are left out of the means" in said
    path = folder / "answers.judged-by-org-judge.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["question_id"], row["turn"], row["score"]) for row in rows] == [
        (1, 1, 9.0),
        (1, 2, -1),
        (2, 1, 4.0),
        (2, 2, 2.0),
    ]
    server.mumbles = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]) + json.dumps(rows[3])[:40])  # killed
    assert main(words(server)) == 0
    assert "2 of 4 asked now" in capsys.readouterr().out and len(server.asked) == 6
    assert [row["score"] for row in read_replies(path, "org/judge").values()] == [9.0, 7.0, 4.0, 2.0]
    assert read_replies(path, "other") == {}
    dump(folder / "answers.jsonl", [answer(2, "say 4", "say 3"), answer(1, "say 9\x1b[31m", "say 7")])
    assert main(words(server)) == 0
    assert "1 of 4 asked now" in capsys.readouterr().out, "another answer is graded anew"
    assert len(path.read_text().splitlines()) == 4


def test_kill_9_in_mid_asking_costs_the_replies_under_way(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    path, calls, killed = folder / "answers.judged-by-org-judge.jsonl", itertools.count(), threading.Event()

    def twice(server: Server, asked: Row) -> Row:
        """Rate two answers, and no other before the kill."""
        if next(calls) >= 2:
            killed.wait(60)
        return rating(server, asked)

    server.reply = twice
    command = [sys.executable, "-m", "sparring", *words(server)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    deadline = time.monotonic() + 60
    while (len(server.asked) < 4 or len(read_replies(path, "org/judge")) < 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    killed.set()
    assert main(words(server)) == 0
    assert "2 of 4 asked now" in capsys.readouterr().out and len(server.asked) == 6
    resumed = said(path)
    path.unlink()
    assert main(words(server)) == 0
    assert resumed == said(path)


def said(path: Path) -> list[Row]:
    """Return the rows of a file of replies, without their times."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "tstamp"} for row in rows]


def test_a_judge_that_never_rates(folder: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.mumbles = "A:"
    assert main(words(server)) == 2
    named(capsys.readouterr().err, "error: ", "4 replies")


def test_another_model_than_the_servers(folder: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(server, "--model", "ghost")) == 2
    named(capsys.readouterr().err, "--model ghost: ", "server")


ERRORS: list[tuple[str, list[Row], tuple[str, ...]]] = [
    ("answers.jsonl", [answer(1, "a", "b")], ("answers.jsonl", "question 2 (math)")),
    ("answers.jsonl", [answer(i, "a", "b") for i in (1, 2, 3)], ("answers.jsonl", "question 3")),
    ("answers.jsonl", [answer(1, "a", "b"), answer(1, "a", "b")], ("answers.jsonl", "question 1", "twice")),
    ("answers.jsonl", [answer(1, "a", "b"), answer(2, "a")], ("answers.jsonl", "line 2: choices[0].turns")),
    ("answers.jsonl", [answer(1, "a", "b"), answer(2, "a", "b", model="x")], ("answers.jsonl", "2 models")),
    ("reference.jsonl", [answer(1, "a", "b")], ("reference.jsonl", "question 2 (math)")),
    (
        "questions.jsonl",
        [{"question_id": 1, "turns": []}],
        ("questions.jsonl", "line 1", "category", "question_id"),
    ),
    (
        "prompts.jsonl",
        [{"name": "x", "system_prompt": "", "prompt_template": ""}],
        ("prompts.jsonl", "single-v1, single-math"),
    ),
    (
        "prompts.jsonl",
        [{"name": name, "system_prompt": "", "prompt_template": "{x}"} for name in PROMPTS],
        ("single-v1", "'x'"),
    ),
]


@pytest.mark.parametrize(("name", "rows", "names"), ERRORS)
def test_a_file_that_is_wrong(
    folder: Path, name: str, rows: list[Row], names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    dump(folder / name, rows)
    assert main(words(None)) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    named(error, names)


def test_what_is_not_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(None)[:-2]) == 2
    named(capsys.readouterr().err, "--base-url URL: ", "MT-Bench")
    assert main([*words(None), "--gamed", "x.csv"]) == 2
    named(capsys.readouterr().err, "--gamed: ", "mt_bench")
    given = [word for word in words(None) if word not in ("--judge-prompts", "prompts.jsonl")]
    assert main(given) == 2
    named(capsys.readouterr().err, "--judge-prompts FILE: ", "FastChat")
