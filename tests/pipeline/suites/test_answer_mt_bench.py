"""`sparring answer mt_bench`: two turns, a temperature for each category, FastChat's format, hits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.store.manifest import find
from sparring.pipeline.suites.answer_mt_bench import row
from sparring.pipeline.suites.mt_bench_files import Question, read_answers, read_questions
from tests.pipeline.suites import runs
from tests.refusals import named
from tests.tiny import tiny_policy

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Name a river.", "Another one."]},
    {"question_id": 111, "category": "math", "turns": ["What is 1 + 1?", "And 2 + 2?"]},
    {"question_id": 112, "category": "math", "turns": ["Count to ten. " * 60, "And on."]},
    {"question_id": 82, "category": "cooking", "turns": ["Name a soup.", "Count to ten. " * 60]},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose iteration 1 has trained, and questions; every step is made in this process, without Ray."""
    runs.answer_in_this_process(monkeypatch)
    policy = tiny_policy(tmp_path / "policy")
    runs.begin(tmp_path, policy, *runs.SAMPLING)
    runs.train(tmp_path, 1, policy)
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    given = ["--instructions", str(folder / "question.jsonl"), "--runs", str(folder / "runs")]
    return ["answer", "mt_bench", "default", *given, *more]


def test_two_turns(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(words(folder)) == 0
    said = capsys.readouterr().out
    to = folder / "runs/default/answers/mt_bench-default-iter-1.jsonl"
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    assert [one["question_id"] for one in rows] == [81, 111, 112, 82]
    assert set(rows[0]) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    turns = [one["choices"][0]["turns"] for one in rows]
    assert all(turns[0]) and all(turns[1]) and turns[2] == ["", ""] and turns[3][0] and not turns[3][1]
    assert "5 answers to 4 questions of two turns" in said and "temperature 0.7: cooking" in said
    assert "WARNING: 2 of the questions lack an answer, which is left empty; the first is 112" in said
    assert "Prompts dropped: too_long 2. prompts.max_tokens is too low." in said
    names = [line.split()[0] for line in said.splitlines() if line.startswith("  sample-")]
    opened = [find(folder / "store", name) for name in names]
    assert [manifest.setting("sampler.temperature") for _, manifest in opened] == [0.7, 0.0, 0.7, 0.0]
    artifact, manifest = opened[3]
    (second,) = artifact.as_input("sample", manifest).table(0).to_pylist()
    assert [one["content"] for one in second["messages"]] == ["What is 1 + 1?", turns[1][0], "And 2 + 2?"]
    assert second["responses"][0]["text"].strip() == turns[1][1]
    monkeypatch.setattr("sparring.pipeline.execution.executor.Executor._make", None)  # nothing is made again
    assert main(words(folder, "--to", str(folder / "again.jsonl"))) == 0
    again = [json.loads(line) for line in (folder / "again.jsonl").read_text().splitlines()]
    assert [{**one, "tstamp": 0} for one in again] == [{**one, "tstamp": 0} for one in rows]
    assert read_answers(to, read_questions(folder / "question.jsonl"))[0] == "default-iter-1"


def test_what_lacks_is_empty() -> None:
    question = Question(1, "math", ("a", "b"))
    assert row(question, "m", [{"text": " x \n"}])["choices"] == [{"index": 0, "turns": ["x", ""]}]
    assert row(question, "m", [])["choices"][0]["turns"] == ["", ""]


def test_options_of_other_suites(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(folder, "--best-of", "2")) == 2
    named(capsys.readouterr().err, "--best-of: ", "mt_bench")
