"""`sparring contamination` over a run's artifacts and files of every layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.suites import results
from sparring.stages.errors import DataError, HubSilent
from sparring.stages.sample.prompts import PROMPTS_SCHEMA
from tests.artifacts import samples_table
from tests.data import each_data, rows_of
from tests.pipeline.suites import runs
from tests.refusals import named


def prompts(texts: dict[str, str]) -> pa.Table:
    rows = [
        {"id": name, "messages": [{"role": "user", "content": text}], "prompt_ids": [1]} for name, text in texts.items()
    ]
    return pa.Table.from_pylist(rows, schema=PROMPTS_SCHEMA)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run before its first sample: one held-out prompt, three to train on."""
    runs.begin(tmp_path, tmp_path / "policy")
    tables = [
        prompts({"h": "zero one two three four"}),
        prompts({"a": "one two three four five", "b": "Red, green."}),
        prompts({"c": "x y z one two three"}),
    ]
    runs.write(tmp_path, (0, "prompts"), tables)
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    return ["contamination", "default", *more, "--n", "3", "--runs", str(folder / "runs")]


def test_the_training_prompts_and_files_of_every_layout(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "a.json": '[{"instruction": "Two three four, please\\u001b[31m"}, {"instruction": "red green"}]',
        "b.jsonl": '{"turns": ["nothing of it", "say one, two, three"]}\n{"turns": [{"content": "zero one two"}]}\n',
        "c.csv": "question\nfive six seven\n",
    }
    for name, text in files.items():
        (run / name).write_text(text)
    to = run / "overlap.json"
    assert main(words(run, *(str(run / name) for name in files), "--json", str(to))) == 0
    said = capsys.readouterr().out
    assert "3-grams of 3 training prompts (that it may sample)" in said
    assert "\x1b" not in said and "\\x1b" in said
    facts = json.loads(to.read_text())
    assert [suite["overlapping"] for suite in facts["suites"]] == [2, 1, 0]
    assert [suite["share"] for suite in facts["suites"]] == [1.0, 0.5, 0.0]
    assert facts["suites"][0]["overlaps"][0] == {
        "where": "row 2",
        "row": 1,
        "grams": 1,
        "shared": 1,
        "prompt": "b",
        "share": 1.0,
    }
    assert facts["suites"][1]["overlaps"][0]["where"] == "line 1", "held-out prompts are not trained on"


def test_what_was_sampled_is_compared_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.write(run, (1, "sample"), [samples_table({"a": ["r"]}), samples_table({"b": ["r"]})])
    runs.write(run, (2, "sample"), [samples_table({"a~1": ["r"]})])
    (run / "suite.jsonl").write_text('{"prompt": "Say a!"}\n{"prompt": "Say c!"}\n')
    assert main(words(run, str(run / "suite.jsonl"))) == 0
    said = capsys.readouterr().out
    assert "3-grams of 2 training prompts (sampled in iterations 1, 2)" in said and "50.0%" in said


def test_each_turn_is_compared_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A question of five words in the second turn of a prompt, at n=13."""
    rows = [
        {
            "id": "a",
            "messages": [
                {"role": "user", "content": "Hello there"},
                {"role": "assistant", "content": "what do ducks eat then"},
                {"role": "user", "content": "Are all Swedish people blond? Be brief."},
            ],
            "prompt_ids": [1],
        }
    ]
    table = pa.Table.from_pylist(rows, schema=PROMPTS_SCHEMA)
    runs.write(run, (1, "sample"), [table])
    suite = run / "suite.csv"
    suite.write_text("question\nAre all Swedish people blond?\nWhat do ducks eat then?\nthere Are all Swedish people\n")
    assert main([*words(run, str(suite))[:-3], "13", "--runs", str(run / "runs")]) == 0
    said = capsys.readouterr().out
    assert "33.3%" in said and ": 1 of 1 as prompt a: Are all Swedish people blond?" in said


ERRORS = [
    ([], "--n", "1", ("--n 1: ", "2 words")),
    (["ghost.json"], "--n", "3", ("ghost.json: ",)),
    (["numbers.jsonl"], "--n", "3", ("numbers.jsonl: line 2: prompt", "number", "--column")),
    (["other.jsonl"], "--n", "3", ("other.jsonl: ", "instruction, prompt, question, turns")),
]


@pytest.mark.parametrize(("files", "option", "value", "names"), ERRORS)
def test_one_message_for_what_is_wrong(
    run: Path,
    files: list[str],
    option: str,
    value: str,
    names: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(run)
    (run / "numbers.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    (run / "other.jsonl").write_text('{"text": "a"}\n')
    assert main(["contamination", "default", *(files or ["numbers.jsonl"]), option, value]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    named(error, names)


def test_a_suite_by_its_name(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "fetched.json").write_text('[{"instruction": "say one two three"}]')
    monkeypatch.setattr("sparring.pipeline.sources.hub.data_file", lambda kind, repo, name: run / "fetched.json")
    monkeypatch.chdir(run)
    assert main(words(run, "alpaca_eval")) == 0
    assert "alpaca_eval: row 1: 1 of 2 as prompt a: say one two three" in capsys.readouterr().out


def test_all_suites_that_can_be_had(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the hub that are here; the others are said, and how to have them."""

    def data_file(kind: str, repo: str, name: str) -> Path:
        if repo not in ("truthfulqa/truthful_qa", "Rowan/hellaswag"):
            raise DataError("no network.")
        column = "question" if "truthful" in repo else "ctx"
        path = run / f"{column}.parquet"
        pq.write_table(pa.table({"type": ["x", "y"], column: ["is one two three true?", "Something else."]}), path)
        return path

    monkeypatch.setattr("sparring.pipeline.sources.hub.data_file", data_file)
    assert main(words(run)) == 0
    said = capsys.readouterr().out
    assert "truthfulqa: row 1: 1 of 3 as prompt a" in said and "hellaswag: row 1: 1 of 3 as prompt a" in said
    left = [line for line in said.splitlines() if line.startswith("left out: ")]
    assert [line.split(":")[1].strip() for line in left] == [
        "AlpacaEval 2.0",
        "MT-Bench",
        "ARC-Challenge",
        "GSM8K",
        "MMLU",
        "WinoGrande",
    ]
    assert all("hub" in line for line in left)
    kept = results.read(run / "runs/default/answers").overlaps
    assert [(one.suite, one.rows, one.overlapping, one.prompts, one.n) for one in kept] == [
        ("truthfulqa", 2, 1, 3, 3),
        ("hellaswag", 2, 1, 3, 3),
    ]
    monkeypatch.setattr("sparring.pipeline.sources.hub.data_file", lambda *_: data_file("dataset", "", ""))
    assert main(words(run)) == 2
    named(capsys.readouterr().err, "error: ", "AlpacaEval 2.0: ")


def test_a_silent_hub_is_asked_once(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its cache has is compared all the same."""
    asked: list[str] = []

    def silent(kind: str, repo: str, name: str) -> Path:
        asked.append(repo)
        raise HubSilent("no network.")

    (run / "cached.jsonl").write_text('{"question": "is one two three true?"}\n')
    monkeypatch.setattr("sparring.pipeline.sources.hub.data_file", silent)
    monkeypatch.setattr(
        "sparring.pipeline.sources.hub.cached_file", lambda _, repo, __: run / "cached.jsonl" if "gsm" in repo else None
    )
    assert main(words(run)) == 0
    said = capsys.readouterr().out
    assert asked == ["tatsu-lab/alpaca_eval"] and "gsm8k: line 1" in said
    assert said.count("left out: ") == 7 and said.count("(the hub does not answer)") == 6


def test_a_run_that_never_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path, "suite.json")) == 2
    named(capsys.readouterr().err, "error: ", "default")


@each_data
def test_the_suites_files(run: Path, capsys: pytest.CaptureFixture[str], data: Callable[[], Path]) -> None:
    """The suites' own files are read as they are."""
    files = [
        *("alpaca_eval/gpt4_1106_preview/model_outputs.json", "mt_bench/question.jsonl"),
        *("prompts/arena_hard_v0.1.jsonl", "prompts/self_instruct_seed_tasks.jsonl"),
    ]
    paths = [data() / name for name in files]
    assert main(words(run, *map(str, paths))) == 0
    said = capsys.readouterr().out
    assert all(f" {rows_of(path)} " in said for path in paths)
