"""A suite's rows as prompts: all of them, in order, drops counted; sampled as one split."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparring.pipeline.store.files import external
from sparring.stages.chat import load_chat
from sparring.stages.errors import DataError
from sparring.stages.sample import prompts, stage, suite_prompts
from sparring.stages.sample.config import SUITE_PROMPTS, SuitePromptsSettings
from tests.artifacts import as_input, as_job, run_step
from tests.refusals import refused
from tests.stages.sample.jobs import sample_job
from tests.tiny import tokenizer_folder

ROWS = ["Why?!", "Name three rivers.", "Why?!", "long " * 99, "Count to 2^10.", "?"]


@pytest.fixture(scope="module")
def folder() -> Path:
    return tokenizer_folder()


def write(path: Path, rows: list[str], column: str = "instruction") -> Path:
    path.write_text(json.dumps([{column: row} for row in rows]), encoding="utf-8")
    return path


def test_every_row_is_asked_in_its_order(tmp_path: Path, folder: Path) -> None:
    source = external("source", write(tmp_path / "suite.json", ROWS))
    chosen = SuitePromptsSettings(column="instruction", max_tokens=60)
    job = as_job(SUITE_PROMPTS, chosen, [source, external("policy", folder)], tmp_path)
    tables, parts, summary = run_step(job, suite_prompts.SuiteRenderer(job), suite_prompts.shards, prompts.finish)
    assert [row["messages"][0]["content"] for row in tables[0].to_pylist()] == [ROWS[i] for i in (0, 1, 4, 5)]
    assert parts[0].dropped == {"duplicate": 1, "too_long": 1}
    assert (summary["heldout"], summary["train"], summary["rows"]) == (4, 0, [4])
    chat = load_chat(folder)
    assert tables[0]["prompt_ids"][1].as_py() == chat.render([{"role": "user", "content": ROWS[1]}])
    made = as_input("prompts", tmp_path / "prompts", tables, summary)
    shards = stage.shards(sample_job(made, folder, split="heldout", rows=None, k=1))
    assert [shard.payload["rows"] for shard in shards] == [[0, 1, 2, 3]]


def test_nothing_fits(tmp_path: Path, folder: Path) -> None:
    source = external("source", write(tmp_path / "suite.json", ROWS))
    job = as_job(
        SUITE_PROMPTS,
        SuitePromptsSettings(column="instruction", max_tokens=3),
        [source, external("policy", folder)],
        tmp_path,
    )
    with refused(DataError, "suite.json", "6 rows", "prompts.max_tokens=3"):
        suite_prompts.SuiteRenderer(job)(suite_prompts.shards(job)[0])


def test_the_column_is_found(tmp_path: Path) -> None:
    for column in suite_prompts.COLUMNS:
        assert suite_prompts.column_of(write(tmp_path / "suite.json", ROWS, column)) == column
    pq.write_table(pa.table({"dataset": ["a"], "instruction": ["Why?"], "n": [1]}), tmp_path / "suite.parquet")
    assert suite_prompts.column_of(tmp_path / "suite.parquet") == "instruction"
    (row,) = suite_prompts.read(tmp_path / "suite.parquet", "instruction")
    assert row.values == {"instruction": "Why?", "dataset": "a"} and row.where == "row 1"
    with refused(DataError, "suite.parquet", "column text", "dataset, instruction, n"):
        suite_prompts.column_of(tmp_path / "suite.parquet", "text")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[]", ("no rows",)),
        ('[{"instruction": "a"}, {"prompt": "b"}]', ("row 2", "instruction", "prompt")),
        ('[{"instruction": ["one", "two"]}]', ("row 1", "instruction")),
        ('["a"]', ("row 1", "object")),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    path = tmp_path / "suite.json"
    path.write_text(text)
    with refused(DataError, str(path), *names):
        list(suite_prompts.read(path, "instruction"))
