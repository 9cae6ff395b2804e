import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparring.pipeline.store.files import external
from sparring.stages.chat import Chat, load_tokenizer
from sparring.stages.errors import DataError
from sparring.stages.sample import prompts
from sparring.stages.sample.layouts import read
from sparring.stages.sample.prompts import PROMPTS_SCHEMA, Source, count, prompt_hash
from tests.data import each_data, rows_of
from tests.refusals import refused
from tests.stages.sample.jobs import jsonl, prompts_job, run_prompts
from tests.tiny import tokenizer_folder

TEXTS = [f"Question {i}: what is {i} + {i}?" for i in range(20)]


def wrong(path: Path, *names: str) -> None:
    with refused(DataError, *names) as caught:
        count([Source(0, path)], "prompt")
    assert str(caught.value).startswith(f"{path}: ")


def run(source: Path, **changes: Any) -> tuple[list[pa.Table], dict[str, Any]]:
    tables, parts, summary = run_prompts(prompts_job(source, tokenizer_folder(), **changes))
    assert sum(p.rows_in for p in parts) == summary["train"] + summary["heldout"] + sum(summary["dropped"].values())
    return tables, summary


def texts(table: pa.Table) -> list[str]:
    return [messages[-1]["content"] for messages in table["messages"].to_pylist()]


# What comes out


def test_parts_ids_and_order(tmp_path: Path) -> None:
    tables, summary = run(jsonl(tmp_path / "p.jsonl", TEXTS))
    held, train = map(texts, tables)
    assert all(table.schema == PROMPTS_SCHEMA for table in tables)
    assert train == [text for text in TEXTS if text not in held]
    by_hash = sorted(TEXTS, key=lambda text: prompt_hash([{"role": "user", "content": text}]))
    assert set(held) == set(by_hash[:2])
    assert tables[1]["id"][0].as_py() == prompt_hash([{"role": "user", "content": train[0]}])[:16]
    assert (summary["heldout"], summary["train"], summary["rows"], summary["dropped"]) == (2, 18, [2, 18], {})
    assert summary["prompt_tokens_max"] == max(len(ids) for t in tables for ids in t["prompt_ids"].to_pylist())


def test_heldout_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    one, _ = run(jsonl(tmp_path / "a.jsonl", TEXTS))
    two, _ = run(jsonl(tmp_path / "b.jsonl", TEXTS[::-1]))
    assert set(texts(one[0])) == set(texts(two[0]))
    assert texts(one[1]) == texts(two[1])[::-1]


def test_limit_takes_the_first_usable_rows(tmp_path: Path) -> None:
    tables, summary = run(jsonl(tmp_path / "p.jsonl", TEXTS), limit=5)
    assert set(texts(tables[0]) + texts(tables[1])) == set(TEXTS[:7])
    assert (summary["heldout"], summary["train"]) == (2, 5)


def test_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = jsonl(tmp_path / "p.jsonl", TEXTS)
    whole, _ = run(source)
    monkeypatch.setattr(prompts, "PART_ROWS", 7)
    tables, summary = run(source)
    assert summary["rows"] == [2, 7, 7, 4]
    assert pa.concat_tables(tables[1:]).equals(whole[1].combine_chunks())


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_a_step_reads_its_sources_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """However many parts it has: rows are read once to choose them, and once to render them."""
    path, rows = tmp_path / f"p.{suffix}", [{"prompt": text} for text in TEXTS]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "csv":
        path.write_text("prompt\n" + "".join(f"{text}\n" for text in TEXTS))
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
    opened, yielded = Counter[Path](), Counter[Path]()

    def reading(path: Path, *given: Any, **more: Any) -> Iterator[Any]:
        opened[path] += 1
        for row in read(path, *given, **more):
            yielded[path] += 1
            yield row

    monkeypatch.setattr(prompts, "read", reading)
    monkeypatch.setattr(prompts, "PART_ROWS", 4)
    tables, summary = run(path)
    assert summary["rows"] == [2, 4, 4, 4, 4, 2] and texts(pa.concat_tables(tables[1:])) == [
        text for text in TEXTS if text not in texts(tables[0])
    ]
    assert opened == {path: 2} and yielded[path] <= 2 * len(TEXTS)


def test_parts_are_the_same_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill, when some are there: those after them, and those before."""
    monkeypatch.setattr(prompts, "PART_ROWS", 4)
    job = prompts_job(jsonl(tmp_path / "p.jsonl", [*TEXTS, TEXTS[3], "?"]), tokenizer_folder())
    cut, worker = prompts.shards(job), prompts.PromptRenderer(job)
    expected = [worker(shard) for shard in cut]
    assert [part.dropped for part in expected] == [{}, {"near_empty": 1, "duplicate": 1}, {}, {}, {}, {}]
    for order in ([4, 5], [3], [5, 0, 2, 1]):
        again = prompts.PromptRenderer(job)
        assert [again(cut[i]) for i in order] == [expected[i] for i in order]


def test_a_source_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", TEXTS)
    job = prompts_job(source, tokenizer_folder())
    cut = prompts.shards(job)
    jsonl(source, TEXTS[:10])
    with refused(DataError, "row 11", "run again"):
        [prompts.PromptRenderer(job)(shard) for shard in cut]


def test_duplicates_and_long_prompts_are_dropped_and_counted(tmp_path: Path) -> None:
    long = "word " * 500
    tables, summary = run(jsonl(tmp_path / "p.jsonl", [TEXTS[0], long, *TEXTS, long]))
    assert summary["dropped"] == {"duplicate": 2, "too_long": 1}
    assert sorted(texts(tables[0]) + texts(tables[1])) == sorted(TEXTS)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_every_format_gives_the_same(tmp_path: Path, suffix: str) -> None:
    odd = [*TEXTS[:5], 'None, "quoted"\nand two lines', "🌷 مرحبا <|im_end|>", "a\u2028b", "10k " * 50]
    path = tmp_path / f"p.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"x": range(len(odd)), "prompt": odd}), path)
    elif suffix == "csv":
        with path.open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerows([["x", "prompt"], *enumerate(odd)])
    else:
        path.write_bytes(b"\xef\xbb\xbf" + jsonl(tmp_path / "q.jsonl", odd).read_bytes() + b"\n\n")
    tables, _ = run(path)
    assert sorted(texts(tables[0]) + texts(tables[1])) == sorted(odd)


def test_messages_with_system_and_turns(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi", "extra": 1},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    tables, _ = run(jsonl(tmp_path / "p.jsonl", [talk, *TEXTS], "messages"), column="messages", heldout=20)
    rows = [row for table in tables for row in table.to_pylist()]
    found = next(row for row in rows if len(row["messages"]) == 4)
    assert found["messages"][1] == {"role": "user", "content": "Hi"}


def test_a_last_answer_is_left_out(tmp_path: Path) -> None:
    """As in data to train on."""
    asked = [{"role": "user", "content": "Why?"}]
    rows = [[*asked, {"role": "assistant", "content": "Because."}], *TEXTS]
    tables, _ = run(jsonl(tmp_path / "p.jsonl", rows, "messages"), column="messages", heldout=20)
    assert asked in [row["messages"] for table in tables for row in table.to_pylist()]


# What is refused


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_empty(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    path.write_text("\n" if suffix == "jsonl" else "prompt\n")
    wrong(path, "no prompts")


def test_truncated(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", TEXTS[:3])
    path.write_text(path.read_text()[:-10])
    wrong(path, "line 3", "JSON", "Unterminated string", "last")
    whole = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": TEXTS}), whole)
    whole.write_bytes(whole.read_bytes()[:-20])
    wrong(whole, "parquet")


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    wrong(path, "line 2", "UTF-8", "0xe9", "31")
    path.write_text('{"prompt": "half a pair \\ud800"}\n')
    wrong(path, "line 1", "'\\ud800'")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_no_column(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    table = pa.table({"prompts": ["a"], "other": ["b"]})
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "csv":
        path.write_text("prompts,other\na,b\n")
    else:
        path.write_text(json.dumps(table.to_pylist()[0]))
    wrong(path, "column prompt", "prompts, other", "prompts.column=prompts")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("  \n", ("empty",)),
        (None, ("null",)),
        (3, ("number",)),
        ([], ("empty", "list")),
        (["a"], ("{role: text, content: text}",)),
        ([("user", ""), ("assistant", "a"), ("user", "b")], ("empty",)),
        ([("assistant", "b"), ("assistant", "b")], ("roles assistant",)),
        ([("system", "a")], ("roles system",)),
        ([("user", "a"), ("user", "b")], ("roles user, user",)),
        ([("tool", "a")], ("roles tool",)),
    ],
)
def test_wrong_prompts(tmp_path: Path, value: Any, names: tuple[str, ...]) -> None:
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        value = [{"role": role, "content": content} for role, content in value]
    wrong(jsonl(tmp_path / "p.jsonl", ["fine", value]), "line 2: prompt", *names)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("What is that?\n")
    wrong(path, ".jsonl, .json, .csv, .tsv, .parquet, .arrow")
    wrong(tmp_path / "p.csv")
    path = tmp_path / "q.csv"
    path.write_text("prompt,x\na,1\nb\n")
    wrong(path, "line 3", "value for x")
    path.write_text('prompt,x\n"a,1\n')
    wrong(path, "line 2", "CSV", "quote")
    path = tmp_path / "q.jsonl"
    path.write_text('["a"]\n')
    wrong(path, "row 1", "object")


def too_few(source: Path, *names: str, **changes: Any) -> None:
    with refused(DataError, f"{source}: ", *names):
        run(source, **changes)


def test_too_few(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", [*TEXTS, "word " * 500])
    too_few(source, "20 usable", "1 too_long", "prompts.heldout=21", heldout=21)
    source_2 = jsonl(tmp_path / "q.jsonl", [*TEXTS, TEXTS[0]])
    too_few(jsonl(tmp_path / "r.jsonl", TEXTS), "20 usable", "prompts.heldout=20", heldout=20)
    too_few(source_2, "20 usable", "1 duplicate", "prompts.heldout=20", heldout=20)
    too_few(source, "20 usable", "1 too_long", "prompts.heldout=20", heldout=20)
    too_few(source, "21 prompts", "prompts.max_tokens=10", max_tokens=10)


@each_data
def test_no_prompt_is_held_out_and_trained_on(data: Callable[[], Path]) -> None:
    tables, summary = run(data() / "ultrafeedback" / "train.jsonl", limit=64, heldout=64)
    assert summary["rows"] == [64, 64]
    assert not set(tables[0]["id"].to_pylist()) & set(tables[1]["id"].to_pylist())


# Several sources, slices, near-empty rows, real data


def slices_job(folder: Path, *groups: list[str], **changes: Any) -> Any:
    """A `prompts` job with one source a slice."""
    job = prompts_job(jsonl(folder / "s1.jsonl", groups[0]), tokenizer_folder(), **changes)
    sources = {
        f"source_{i}": replace(external("source", jsonl(folder / f"s{i}.jsonl", texts)), role=f"source_{i}")
        for i, texts in enumerate(groups, start=1)
    }
    return replace(job, inputs={"policy": job.inputs["policy"], **sources})


def test_sources_keep_their_slices(tmp_path: Path) -> None:
    groups = [[f"{name} {i}: what is that?" for i in range(6)] for name in ("one", "two", "three")]
    groups[1].append("one 0: what is that?")
    tables, _, summary = run_prompts(slices_job(tmp_path, *groups))
    held, train = map(texts, tables)
    assert sum(summary["slices"]) == summary["train"] == 16 and len(held) == 2
    cut = [[text for text in group if text in train] for group in groups]
    cut[1] = [text for text in cut[1] if not text.startswith("one")]
    assert summary["slices"] == [len(group) for group in cut]
    assert train == [text for group in cut for text in group]
    assert summary["dropped"] == {"duplicate": 1}


def test_near_empty_prompts_are_counted(tmp_path: Path) -> None:
    odd = ["?", " . ", "🌷", "5", "\u200b!"]
    kept = ["Hi", "你好", "17", "مر"]
    tables, summary = run(jsonl(tmp_path / "p.jsonl", [*TEXTS, *odd, *kept]))
    assert summary["dropped"] == {"near_empty": len(odd)}
    assert set(kept) <= {text for table in tables for text in texts(table)}


def test_rows_without_text_of_the_hub_are_counted(tmp_path: Path) -> None:
    rows = [*TEXTS, "", "  ", None, [], [{"role": "user", "content": ""}]]
    _, summary = run(jsonl(tmp_path / "p.jsonl", rows), on_empty="drop")
    assert summary["dropped"] == {"near_empty": 5}
    with refused(DataError, "prompt", "empty"):
        run(jsonl(tmp_path / "p.jsonl", rows))


def test_prompts_that_the_template_refuses_are_counted_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a system message under Gemma."""
    render = Chat.render

    def strict(self: Chat, messages: Any) -> list[int]:
        if messages[0]["role"] == "system":
            raise DataError("the chat template refuses messages of the roles system, user: no system")
        return render(self, messages)

    monkeypatch.setattr(Chat, "render", strict)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    _, summary = run(jsonl(tmp_path / "p.jsonl", [talk, *TEXTS]), on_empty="drop")
    assert summary["dropped"] == {"refused_by_template": 1}
    with refused(DataError, "line 1", "system, user"):
        run(jsonl(tmp_path / "p.jsonl", [talk, *TEXTS]))
    other = [talk, [talk[0], {"role": "user", "content": "Bye"}]]
    with refused(DataError, "line 2", "system, user"):
        run(jsonl(tmp_path / "q.jsonl", other), on_empty="drop", heldout=1)


def test_csv_cells_that_are_message_lists(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": 'Say "hi", please'},
    ]
    path = tmp_path / "p.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["prompt"])
        writer.writerows([[json.dumps(turns)], ["[{not a list"], ['[{"a": 1}]'], *([text] for text in TEXTS)])
    tables, _ = run(path)
    found = [row["messages"] for table in tables for row in table.to_pylist()]
    assert turns in found
    assert [{"role": "user", "content": '[{"a": 1}]'}] in found
    assert [{"role": "user", "content": "[{not a list"}] in found


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("ultrafeedback/train.jsonl", "prompt"),
        ("prompts/arena_hard_v0.1.jsonl", "turns"),
        ("prompts/self_instruct_seed_tasks.jsonl", "instruction"),
        ("prompts/user_oriented_instructions.jsonl", "instruction"),
    ],
)
@each_data
def test_prompts_of_other_layouts(tmp_path: Path, name: str, column: str, data: Callable[[], Path]) -> None:
    """Every row is a prompt or a counted drop, and what is kept comes back from its ids."""
    path = data() / name
    rows = rows_of(path)
    job = replace(prompts_job(path, tokenizer_folder(), column=column, max_tokens=1024), out=tmp_path / "out")
    tables, parts, summary = run_prompts(job)
    assert sum(part.rows_in for part in parts) == rows
    assert summary["train"] + summary["heldout"] + sum(summary["dropped"].values()) == rows
    assert summary["train"] > 0.9 * rows - 10
    tokenizer = load_tokenizer(tokenizer_folder())
    for row in tables[1].slice(0, 50).to_pylist():
        shown = tokenizer.decode(row["prompt_ids"], clean_up_tokenization_spaces=False)
        assert row["messages"][-1]["content"] in shown
        assert row["prompt_ids"].count(tokenizer.bos_token_id) == 3  # SmolLM2's <|im_start|> is its BOS
