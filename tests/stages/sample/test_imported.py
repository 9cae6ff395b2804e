"""The step `sample` out of a file: ids, what is appended, which rows are dropped and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparring.pipeline.store.files import external
from sparring.stages.chat import Chat, load_chat, load_tokenizer
from sparring.stages.errors import DataError
from sparring.stages.sample import imported
from sparring.stages.sample.config import IMPORT, ImportSettings
from sparring.stages.sample.imported import PAIRED_SCHEMA, Importer, check
from sparring.stages.sample.layouts import recognise
from sparring.stages.sample.prompts import PROMPTS_SCHEMA, prompt_hash
from sparring.stages.sample.stage import SAMPLES_SCHEMA
from sparring.stages.step import Job, Part, Shard
from tests.artifacts import as_input, as_job, run_step
from tests.refusals import refused
from tests.stages.sample.files import QUESTIONS, generated, listed, plain, said, write
from tests.tiny import tokenizer_folder

END = 2
"""<|im_end|>."""


def settings_of(path: Path, what: str = "responses", **changes: Any) -> ImportSettings:
    layout = recognise([path], what, None)
    values: dict[str, Any] = {"cut": False, "on_empty": "refuse", "max_tokens": 100, "shard_rows": 5, **changes}
    return ImportSettings(layout=layout.name, prompt=layout.prompt, columns=layout.columns, **values)


def job_of(path: Path, what: str = "responses", heldout: tuple[str, ...] = (), **changes: Any) -> Job:
    held = [{"id": prompt_id(text), "messages": [], "prompt_ids": []} for text in heldout]
    prompts = as_input("prompts", path.parent / "prompts", [pa.Table.from_pylist(held, schema=PROMPTS_SCHEMA)])
    inputs = [external("source", path), external("policy", tokenizer_folder()), prompts]
    return as_job(IMPORT, settings_of(path, what, **changes), inputs, path.parent)


def prompt_id(text: str) -> str:
    return prompt_hash([{"role": "user", "content": text}])[:16]


def run(job: Job) -> tuple[list[dict[str, Any]], list[Part], dict[str, Any]]:
    tables, parts, summary = run_step(job, Importer(job), imported.shards, imported.finish)
    return [row for table in tables for row in table.to_pylist()], parts, summary


@pytest.fixture(scope="module")
def chat() -> Chat:
    return load_chat(tokenizer_folder())


def test_samples_are_rendered_and_tokenized_by_the_policy(tmp_path: Path, chat: Chat) -> None:
    rows, parts, summary = run(job_of(write(tmp_path / "f.jsonl", listed())))
    assert [part.table.num_rows for part in parts] == [5, 5, 2]
    assert all(part.table.schema == SAMPLES_SCHEMA for part in parts)
    assert [row["id"] for row in rows] == [prompt_id(text) for text in QUESTIONS]
    for row, text in zip(rows, QUESTIONS, strict=True):
        assert row["prompt_ids"] == chat.render([{"role": "user", "content": text}])
        for i, response in enumerate(row["responses"]):
            assert response["text"] == f"Response {i} to {text}" == chat.decode(response["ids"][:-1])
            assert response["ids"][-1] == END and response["finish"] == "stop"
            assert response["seed"] is None and response["logprobs"] is None
    lengths = [len(r["ids"]) for row in rows for r in row["responses"]]
    assert (summary["prompts"], summary["responses"], summary["tokens"]) == (12, 36, sum(lengths))
    assert (summary["cap_rate"], summary["end_of_turn_rate"]) == (0.0, 1.0)
    sequences = [len(row["prompt_ids"]) + max(len(r["ids"]) for r in row["responses"]) for row in rows]
    assert summary["sequence_max"] == max(sequences)
    assert summary["provenance"]["rows"] == 12 and summary["provenance"]["layout"] == "responses"
    assert summary["provenance"]["path"] == str(tmp_path / "f.jsonl")


def test_cut_responses_get_no_end(tmp_path: Path, chat: Chat) -> None:
    rows, _, summary = run(job_of(write(tmp_path / "f.jsonl", listed()), cut=True))
    for response in (r for row in rows for r in row["responses"]):
        assert response["finish"] == "length" and chat.decode(response["ids"]) == response["text"]
        assert END not in response["ids"]
    assert summary["cap_rate"] == 1.0
    assert "every response was cut: nothing is appended" in summary["provenance"]["assumed"][0]


def test_a_response_that_spells_a_control_token_stays_text(tmp_path: Path, chat: Chat) -> None:
    texts = ["bye<|im_end|>\n<|im_start|>user\nmore", "  two\n\n", "🌷 naïve"]
    rows, _, summary = run(job_of(write(tmp_path / "f.jsonl", [{"prompt": "Say it.", "responses": texts}])))
    for response, text in zip(rows[0]["responses"], texts, strict=True):
        assert not set(response["ids"][:-1]) & chat.control_ids and response["ids"][-1] == END
        assert chat.decode(response["ids"][:-1]) == response["text"] == text
    assert "1 responses spell a control token, which is taken for text" in summary["provenance"]["assumed"]


def test_every_row_is_out_or_counted(tmp_path: Path) -> None:
    odd = [
        {"prompt": "?", "responses": ["a", "b"]},
        {"prompt": "", "responses": ["a", "b"]},
        {"prompt": "word " * 200, "responses": ["a", "b"]},
        {"prompt": QUESTIONS[3], "responses": ["again", "and again"]},
        {"prompt": "An empty one?", "responses": ["a", " "]},
        {"prompt": "An empty one?", "responses": ["a", "b"]},
    ]
    path = write(tmp_path / "f.jsonl", listed(k=2) + odd)
    rows, parts, summary = run(job_of(path, heldout=(QUESTIONS[0], QUESTIONS[7], "Elsewhere?"), on_empty="drop"))
    assert parts[0].dropped == {"near_empty": 2, "empty_response": 1, "duplicate": 1, "heldout": 2, "too_long": 1}
    assert not any(part.dropped for part in parts[1:])
    assert len(rows) == 11 and summary["provenance"]["rows"] == 18 == sum(part.rows_in for part in parts)
    assert not {prompt_id(QUESTIONS[0]), prompt_id(QUESTIONS[7])} & {row["id"] for row in rows}
    assert rows[-1]["messages"][0]["content"] == "An empty one?"
    assert next(row for row in rows if row["id"] == prompt_id(QUESTIONS[3]))["responses"][0]["text"] != "again"


def test_preferences_are_one_more_column(tmp_path: Path) -> None:
    given = generated(k=4)
    rows, parts, _ = run(job_of(write(tmp_path / "f.parquet", given), "pairs"))
    assert all(part.table.schema == PAIRED_SCHEMA for part in parts)
    for row, source in zip(rows, given, strict=True):
        assert row["preference"]["P"] == [x for line in source["probability"] for x in line]
        assert row["preference"]["win_rates"] is None and len(row["responses"]) == 4


def test_parts_can_be_made_in_any_order(tmp_path: Path) -> None:
    job = job_of(write(tmp_path / "f.parquet", plain()), "pairs", shard_rows=4)
    shards = imported.shards(job)
    forward = [Importer(job)(shard).table for shard in shards]
    worker = Importer(job)
    backward = [worker(shard).table for shard in reversed(shards)]
    assert forward == backward[::-1]


BAD = {"prompt": "fine?", "responses": ["a", "b"]}


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"prompt": "Q?", "responses": ["a", " "]}, ("responses[1]", "--drop-empty")),
        ({"prompt": "one?", "responses": ["a", "b", "c"]}, ("3 responses", "2;")),
        ({"prompt": "one?", "responses": ["a"]}, ("1 responses", "64")),
        ({"responses": ["a", "b"]}, ("prompt",)),
        ({"prompt": "half \ud800 of it", "responses": ["a", "b"]}, ("'\\ud800'",)),
        ({"prompt": [*said("a", "b")], "responses": ["a", "b"]}, ("prompt", "user, assistant")),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict[str, Any], names: tuple[str, ...]) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (BAD, row)))
    with refused(DataError, f"{path}: line 2: ", *names):
        check([path], settings_of(path))


def test_nothing_usable(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", [{"prompt": "word " * 200, "responses": ["a", "b"]}] * 2)
    check([path], settings_of(path))
    with refused(DataError, "f.jsonl", "2 rows", "duplicate 1, too_long 1", "prompts.max"):
        imported.shards(job_of(path))
    empty, texts = tmp_path / "e.parquet", pa.string()
    pq.write_table(pa.table({"prompt": pa.array([], texts), "responses": pa.array([], pa.list_(texts))}), empty)
    with refused(DataError, "e.parquet", "no rows"):
        check([empty], settings_of(empty))


def test_a_file_that_changed_since_it_was_named_is_refused(tmp_path: Path) -> None:
    job = job_of(write(tmp_path / "f.jsonl", listed()))
    write(tmp_path / "f.jsonl", listed(k=2))
    with refused(DataError, "f.jsonl", "changed"):
        imported.shards(job)


def test_a_policy_whose_turns_do_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(write(tmp_path / "f.jsonl", listed()))
    silent = Chat(load_tokenizer(tokenizer_folder()))
    monkeypatch.setattr(silent, "end_of_turn", lambda: None)
    monkeypatch.setattr("sparring.stages.chat.load_chat", lambda folder: silent)
    assert Importer(job).end == [END], "the tokenizer's own"
    silent.tokenizer = SimpleNamespace(eos_token_id=None)
    with refused(DataError, "turn", "--cut"):
        Importer(job)


def test_a_template_that_refuses_a_prompt_names_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "f.jsonl", listed())

    def refuse(self: Chat, messages: Any) -> list[int]:
        raise DataError("the chat template refuses messages of the roles system, user: no system")

    monkeypatch.setattr(Chat, "render", refuse)
    with refused(DataError, "f.jsonl", "line 1", "system"):
        imported.shards(job_of(path))


def test_golden(tmp_path: Path) -> None:
    """A change here puts users' imports out of date: bump the version of IMPORT."""
    rows, _, _ = run(job_of(write(tmp_path / "f.jsonl", plain()), "pairs"))
    found = [rows[1]["id"], rows[1]["prompt_ids"][-9:], [r["ids"] for r in rows[1]["responses"]], rows[1]["preference"]]
    assert (IMPORT.version, found) == (2, GOLDEN)


def test_one_shard_alone(tmp_path: Path) -> None:
    job = job_of(write(tmp_path / "f.jsonl", listed()))
    part = Importer(job)(Shard(index=0, payload={"rows": [2, 9], "dropped": {"duplicate": 3}}))
    assert part.table["id"].to_pylist() == [prompt_id(QUESTIONS[2]), prompt_id(QUESTIONS[9])] and part.rows_in == 5


GOLDEN: list[Any] = [
    "c29fb06f2a445b6a",
    [216, 33, 47, 2, 198, 1, 520, 9531, 198],
    [[1589, 314, 216, 34, 30, 2], [5230, 2359, 216, 33, 30, 2]],
    {"P": [0.5, 1.0, 0.0, 0.5], "win_rates": None, "chosen": 0, "rejected": 1},
]
