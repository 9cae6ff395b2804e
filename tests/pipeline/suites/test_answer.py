"""`sparring answer`: rows in the suite's order, best-of-n by the oracle, hits, and one message for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.store.manifest import Artifact, find
from sparring.pipeline.suites import answer, results
from sparring.stages.annotate import winrate
from sparring.stages.step import Input
from tests.artifacts import as_input, samples_table
from tests.pipeline.suites import runs
from tests.refusals import named
from tests.tiny import tiny_policy

ROWS = [
    {"dataset": "first", "instruction": "Name three rivers."},
    {"instruction": "Say \x1b[31mred\x1b[0m."},
    {"dataset": "third", "instruction": "Count to ten. " * 60},
    {"dataset": "fourth", "instruction": "Name three rivers."},
]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("policies")
    return [tiny_policy(folder / str(seed), seed=seed) for seed in range(2)]


@pytest.fixture
def asked(tmp_path: Path, policies: list[Path]) -> Path:
    """A folder with a run whose iteration 1 has trained, and a suite."""
    runs.begin(tmp_path, policies[0], *runs.SAMPLING)
    runs.train(tmp_path, 1, policies[1])
    (tmp_path / "suite.json").write_text(json.dumps(ROWS))
    return tmp_path


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every step here, without Ray."""
    runs.answer_in_this_process(monkeypatch)


def words(folder: Path, *more: str) -> list[str]:
    return ["answer", str(folder / "suite.json"), "default", "--runs", str(folder / "runs"), *more]


def table(path: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_answers_in_the_suites_order(asked: Path, in_this_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(asked)) == 0
    said = capsys.readouterr().out
    rows = table(asked / "runs/default/answers/suite-default-iter-1.json")
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in ROWS]
    assert [row["dataset"] for row in rows] == ["first", "suite", "third", "fourth"]
    assert {row["generator"] for row in rows} == {"default-iter-1"}
    train = Artifact(asked / "store", "train", "1" * 64).manifest()
    whose = results.about_of(asked / "runs/default/answers/suite-default-iter-1.json")
    assert train and whose == results.About(iteration=1, policy=train.content)
    assert list(rows[0]) == ["dataset", "instruction", "output", "generator"]
    assert rows[0]["output"] and rows[0]["output"] == rows[3]["output"] != rows[1]["output"]
    assert rows[2]["output"] == ""
    assert (
        "3 answers to 4 rows" in said
        and "WARNING: 1 of the rows have no answer" in said
        and "the first is row 3" in said
    )
    assert "Prompts dropped: too_long 1. prompts.max_tokens is too low." in said
    base = asked / "base.json"
    assert main([*words(asked), "--iter", "0", "--to", str(base)]) == 0
    assert table(base)[0]["output"] != rows[0]["output"] and table(base)[0]["generator"] == "default-iter-0"


def test_best_of_n_is_the_argmax_of_the_win_rate(
    asked: Path, in_this_process: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to = asked / "best.json"
    assert main([*words(asked, "--best-of", "3", "--to", str(to)), "oracle=lexical"]) == 0
    said = capsys.readouterr().out
    names = [word for word in said.replace(",", " ").split() if word.startswith(("sample-", "score-"))]
    samples, scores = (_opened(asked, name) for name in names)
    for row, score in zip(samples.table(0).to_pylist(), scores.table(0).to_pylist(), strict=True):
        logits, swapped = (np.reshape(score[name], (3, 3)) for name in ("logits", "swapped"))
        rates = winrate.win_rates(winrate.preference_matrix((logits - swapped) / 2))
        text = row["responses"][int(rates.argmax())]["text"].strip()
        assert text == next(one for one in table(to) if one["instruction"] == row["messages"][0]["content"])["output"]
    assert {one["generator"] for one in table(to)} == {"default-iter-1-best-of-3"}
    monkeypatch.setattr("sparring.pipeline.execution.executor.Executor._make", None)  # nothing is made again
    before, whose = to.read_bytes(), results.about_of(to)
    assert whose and whose.best_of == 3
    assert main(["best-of-n", *words(asked, "--n", "3", "--to", str(to))[1:], "oracle=lexical"]) == 0
    assert to.read_bytes() == before


def _opened(folder: Path, name: str) -> Input:
    artifact, manifest = find(folder / "store", name)
    return artifact.as_input(artifact.kind, manifest)


def test_ties_go_to_the_first(tmp_path: Path) -> None:
    assert winrate.best(np.array([0.5, 0.6, 0.6 + 1e-14])) == 1
    assert winrate.best(np.array([0.5, 0.5])) == 0
    samples = as_input("sample", tmp_path, [samples_table({"a": ["one", "two"]})])
    assert [(name, one["text"]) for name, one in answer.best_responses(samples, None, "matrix")] == [("a", "one")]


ERRORS: list[tuple[list[str], str | tuple[str, ...]]] = [
    (["ghost.json", "default"], ("ghost.json: ", "alpaca_eval")),
    (["suite.json", "ghost"], "ghost: "),
    (["suite.json", "default", "--iter", "7"], "--iter 7: "),
    (["suite.json", "default", "--best-of", "0"], ("0 samples", "1 to 64")),
    (["suite.json", "default", "--best-of", "65"], "65 samples"),
    (["suite.json", "default", "--to", "nowhere/x.json"], "--to nowhere/x.json: "),
    (["suite.json", "default", "--column", "text"], ("column text", "dataset, instruction")),
    (
        ["suite.json", "default", "--instructions", "suite.json"],
        ("--instructions: ", "(alpaca_eval, mt_bench)"),
    ),
    (["empty.json", "default"], ("empty.json: row 2", "instruction")),
    (["object.json", "default"], ("object.json: ", "no rows")),
    (["cut.json", "default"], ("cut.json: ", "JSON")),
    (["words.txt", "default"], ("words.txt: ", ".jsonl")),
]


@pytest.mark.parametrize(("given", "names"), ERRORS)
def test_one_message_for_what_is_wrong(
    asked: Path,
    given: list[str],
    names: str | tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(asked)
    files = {"empty": '[{"instruction": "a b"}, {"instruction": " "}]', "object": "{}", "cut": '[{"instruction": "a'}
    for name, text in files.items():
        (asked / f"{name}.json").write_text(text)
    (asked / "words.txt").write_text("one")
    assert main(["answer", *given]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    named(error, names)


def test_a_run_without_a_trained_policy(
    tmp_path: Path, policies: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runs.begin(tmp_path, policies[0])
    (tmp_path / "suite.json").write_text(json.dumps(ROWS))
    assert main(words(tmp_path)) == 2
    named(capsys.readouterr().err, "error: ", "--iter 0")


def test_a_suite_that_is_not_here_says_how_to_get_it(
    asked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(asked / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(asked / "hub"))
    assert main(["answer", "alpaca_eval", "default", "--runs", str(asked / "runs")]) == 2
    error = capsys.readouterr().err
    named(error, "AlpacaEval 2.0: alpaca_eval_gpt4_baseline.json", "tatsu-lab/alpaca_eval", "--instructions FILE")
    assert "Traceback" not in error


@pytest.mark.slow
def test_through_the_command_line_on_ray(asked: Path) -> None:
    command = [sys.executable, "-m", "sparring", *words(asked, "--best-of", "2")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert len(table(asked / "runs/default/answers/suite-default-iter-1-best-of-2.json")) == 4
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "starting Ray" not in again.stderr
