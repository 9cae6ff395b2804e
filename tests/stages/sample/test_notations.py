"""Common layouts of prompts and pairs: the same prompts, ids and responses in every format, or one message."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from sparring.stages.errors import DataError
from sparring.stages.sample.layouts import EmptyResponse, Entry, parse, read, recognise
from sparring.stages.sample.messages import messages
from sparring.stages.sample.prompts import Source, count, prompt_hash
from sparring.stages.sample.source import rows
from tests.data import made_up, published, rows_of
from tests.refusals import refused
from tests.stages.sample.files import said

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow")
USER = {"role": "user", "content": "Why?"}
TURNS = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "So."}]
TURNS += [{"role": "user", "content": "Really?"}]
SHAREGPT = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Why?"}]
SHAREGPT += [{"from": "gpt", "value": "So."}, {"from": "human", "value": "Really?"}]
HH = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Really?\n\nAssistant:"
HH_TURNS = TURNS[1:]


def parts(text: str) -> list[dict[str, str]]:
    """A text as two parts of OpenAI's."""
    return [{"type": "text", "text": half} for half in (text[:2], text[2:])]


def write(path: Path, given: list[dict[str, Any]]) -> Path:
    """Write rows; what is no text is its JSON in CSV."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(given, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(given), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(given)
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, given[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in given)
    return path


PROMPTS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "text": ({"prompt": "Why?"}, [USER]),
    "messages": ({"prompt": TURNS}, TURNS),
    "messages with the answer": ({"messages": [*TURNS, {"role": "assistant", "content": "Yes."}]}, TURNS),
    "messages as text": ({"prompt": json.dumps(TURNS)}, TURNS),
    "messages as Python's text": ({"prompt": f" {TURNS!r}"}, TURNS),
    "messages in parts": (
        {"prompt": [{**turn, "content": parts(turn["content"])} for turn in TURNS]},
        TURNS,
    ),
    "sharegpt": ({"id": "a", "conversations": [*SHAREGPT, {"from": "gpt", "value": "Yes."}]}, TURNS),
    "sharegpt, system beside": ({"conversations": SHAREGPT[1:], "system": "Be brief."}, TURNS),
    "sharegpt as text": ({"prompt": json.dumps(SHAREGPT)}, TURNS),
    "alpaca": (
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        [{"role": "user", "content": "Add.\n\n1, 2"}],
    ),
    "alpaca without input": ({"instruction": "Why?", "input": "", "output": "So."}, [USER]),
    "alpaca with history": (
        {"instruction": "Really?", "input": "", "output": "Yes", "system": "Be brief.", "history": [["Why?", "So."]]},
        TURNS,
    ),
    "hh-rlhf": ({"chosen": HH + " Yes.", "rejected": HH + " No."}, HH_TURNS),
    "hh-rlhf's prompt": ({"prompt": HH, "response": "Yes."}, HH_TURNS),
    "implicit": ({"chosen": said("Why?", "a"), "rejected": said("Why?", "b")}, [USER]),
    "ultrafeedback": ({"prompt": "Why?", "chosen": said("Why?", "a"), "rejected": said("Why?", "b")}, [USER]),
    "llama-factory": (
        {"conversations": SHAREGPT, "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        TURNS,
    ),
    "llmbar": ({"input": "Why?", "output_1": "a", "output_2": "b", "label": 2}, [USER]),
    "literal": ({"prompt": '[{"a": 1}]'}, [{"role": "user", "content": '[{"a": 1}]'}]),
    "literal list": ({"prompt": "[1, 2]"}, [{"role": "user", "content": "[1, 2]"}]),
    "literal object": ({"prompt": '{"role": "x"}'}, [{"role": "user", "content": '{"role": "x"}'}]),
    "literal, cut": ({"prompt": '[{"role": "user", '}, [{"role": "user", "content": '[{"role": "user", '}]),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_the_same_in_every_format(tmp_path: Path, name: str, suffix: str) -> None:
    row, expected = PROMPTS[name]
    (found,) = read(write(tmp_path / f"f.{suffix}", [row]), "prompt")
    assert found.messages == expected
    assert prompt_hash(found.messages) == prompt_hash(expected)  # type: ignore[arg-type]


PAIRS = {
    "texts": ({"prompt": "Why?", "chosen": "a", "rejected": "b"}, [USER]),
    "prompt as text": ({"prompt": json.dumps(TURNS), "chosen": "a", "rejected": "b"}, TURNS),
    "responses as text": (
        {"chosen": json.dumps(said("Why?", "a")), "rejected": json.dumps(said("Why?", "b"))},
        [USER],
    ),
    "hh-rlhf": ({"chosen": HH + " a", "rejected": HH + " b"}, HH_TURNS),
    "alpaca": ({"instruction": "Why?", "input": "", "chosen": "a", "rejected": "b"}, [USER]),
    "openai": (
        {"messages": TURNS, "chosen": TURNS[2] | {"content": "a"}, "rejected": TURNS[2] | {"content": "b"}},
        TURNS,
    ),
    "probability": ({"prompt": "Why?", "chosen": "a", "rejected": "b", "chosen_probs": 0.75}, [USER]),
    **{name: PROMPTS[name] for name in ("implicit", "ultrafeedback", "llama-factory")},
    "llmbar": ({"input": "Why?", "output_1": "b", "output_2": "a", "label": 2}, [USER]),
}


def pair(path: Path) -> Entry:
    layout = recognise([path], "pairs", None)
    (values,) = (found for _, found in rows(path, layout.columns))
    return parse(values, layout)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_the_same_in_every_format(tmp_path: Path, name: str, suffix: str) -> None:
    row: Any
    row, expected = PAIRS[name]
    entry = pair(write(tmp_path / f"f.{suffix}", [row]))
    assert (entry.prompt, entry.texts) == (expected, ["a", "b"])
    assert entry.preference is not None and (entry.preference.chosen, entry.preference.rejected) == (0, 1)
    assert entry.preference.P[1] == (0.75 if name == "probability" else 1.0)


@pytest.mark.parametrize("suffix", FORMATS)
def test_lists_of_responses_and_their_scores_are_the_same_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"r.{suffix}", [{"prompt": "Why?", "responses": ["a", "b"]}])
    layout = recognise([path], "responses", None)
    assert [parse(found, layout).texts for _, found in rows(path, layout.columns)] == [["a", "b"]]
    scored = {"prompt": "Why?", "generate_0": "a", "generate_1": "b", "rm_scores": [0.5, 1.5]}
    entry = pair(write(tmp_path / f"g.{suffix}", [{**scored, "probability": [[0.5, 0.1], [0.9, 0.5]]}]))
    assert entry.preference is not None
    assert (entry.preference.P, entry.preference.chosen) == ([0.5, 0.1, 0.9, 0.5], 1)


def test_a_response_that_spells_a_conversation_without_one_is_a_text(tmp_path: Path) -> None:
    text = json.dumps([USER])
    entry = pair(write(tmp_path / "f.jsonl", [{"prompt": "Show me.", "chosen": text, "rejected": "b"}]))
    assert entry.texts == [text, "b"]


def test_a_dialogue_whose_speaker_goes_on() -> None:
    found = messages("\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d\n\nHuman: e\n\nAssistant:")
    assert [(turn["role"], turn["content"]) for turn in found] == [
        ("user", "a\n\nb"),
        ("assistant", "c\n\nd"),
        ("user", "e"),
    ]


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"prompt": "Q", "completion": "a", "label": True}, ("label", "KTO")),
        ({"input": "Q", "output_1": "a", "output_2": "b", "label": 3}, ("label", "3", "1 or 2")),
        ({"chosen": HH + " a", "rejected": HH.replace("Why", "How") + " b"}, ("chosen", "rejected")),
        ({"chosen": HH + " a", "rejected": HH}, ("rejected", "empty")),
    ],
)
def test_pairs_that_are_none(tmp_path: Path, row: dict[str, Any], names: tuple[str, ...]) -> None:
    with refused((DataError, ValueError), *names):
        pair(write(tmp_path / "f.jsonl", [row]))


@pytest.mark.parametrize(("name", "column"), [("instruction", "instruction"), ("turns", "turns"), ("Prompt", "Prompt")])
def test_a_column_that_is_likely_is_proposed_not_taken(tmp_path: Path, name: str, column: str) -> None:
    path = write(tmp_path / "f.jsonl", [{"id": 1, name: "Why?", "instances": []}])
    with refused(DataError, "column prompt", f"prompts.column={column}"):
        list(read(path, "prompt"))


@pytest.mark.parametrize(
    ("data", "name", "without_text"),
    [
        (made_up, "dpo_en_demo.json", 0),
        (made_up, "hh_harmless_base_test.jsonl.gz", 2),
        (made_up, "llmbar_natural.json", 0),
        (published, "dpo_en_demo.json", 0),
        (published, "hh_harmless_base_test.jsonl.gz", 4),
        (published, "llmbar_natural.json", 0),
        (published, "llmbar_mtbench.json", 0),
        (published, "llmbar_llmeval2.json", 1),
    ],
)
def test_pairs_of_every_layout(data: Callable[..., Path], name: str, without_text: int) -> None:
    """Each row is read as a pair, or has an empty response; and as a prompt, or is counted."""
    path = data() / "preferences" / name if data is made_up else data(f"preferences/{name}")
    given = rows_of(path)
    layout, pairs, empty = recognise([path], "pairs", None), 0, 0
    for _, values in rows(path, layout.columns):
        try:
            pairs += parse(values, layout).preference is not None
        except EmptyResponse:
            empty += 1
    assert (pairs, empty) == (given - without_text, without_text)
    found = count([Source(0, path)], "prompt")
    assert found.different + sum(found.dropped.values()) == given
