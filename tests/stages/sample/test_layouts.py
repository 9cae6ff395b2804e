"""What the columns of a file tell, what its rows say, and every complaint about them."""

from pathlib import Path
from typing import Any

import pytest

from sparring.stages.errors import DataError
from sparring.stages.sample.layouts import EmptyResponse, Layout, Preference, parse, recognise
from sparring.stages.sample.messages import Empty
from tests.refusals import refused
from tests.stages.sample.files import binarized, generated, listed, plain, said, scored, write

USER = [{"role": "user", "content": "Q"}]
PAIRS = Layout("pairs", "prompt", ("chosen", "rejected", "prompt"))
RATED = Layout("pairs", "prompt", ("chosen", "rejected", "chosen_probs_win", "chosen_probs_lose", "prompt"))
JUDGED = Layout("sppo_generated", None, ("generate_0", "generate_1", "probability", "rm_scores"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("rows", "what", "name", "prompt", "columns"),
    [
        (listed(), "responses", "responses", "prompt", 2),
        (generated(), "responses", "generated", "prompt", 6),
        (generated(), "pairs", "sppo_generated", "prompt", 8),
        (scored(), "pairs", "sppo_pairs", None, 5),
        (binarized(), "pairs", "pairs", "prompt", 3),
        (plain(), "pairs", "pairs", "prompt", 3),
    ],
)
def test_the_columns_tell_the_layout(
    tmp_path: Path, suffix: str, rows: list[dict[str, Any]], what: str, name: str, prompt: str | None, columns: int
) -> None:
    found = recognise([write(tmp_path / f"f.{suffix}", rows)], what, None)
    assert (found.name, found.prompt, len(found.columns)) == (name, prompt, columns)
    for row in rows:
        entry = parse(row, found)
        assert entry.prompt[0]["content"].startswith("Question") and all(entry.texts)


def test_the_prompts_column_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", [{"question": "Q", "responses": ["a", "b"]}])
    layout = recognise([path], "responses", "question")
    assert layout == Layout("responses", "question", ("responses", "question"))
    assert parse({"question": "Q", "responses": ["a", "b"]}, layout).prompt == USER


@pytest.mark.parametrize(
    ("row", "what", "prompt", "names"),
    [
        ({"prompt": "Q"}, "responses", None, ("responses", "generate_0")),
        ({"chosen": "a", "rejected": "b"}, "responses", None, ("`sparring import pairs`",)),
        ({"prompt": "Q", "chosen": "a"}, "pairs", None, ("column rejected", "prompt, chosen")),
        ({"chosen": "a", "rejected": "b", "chosen_probs_win": 1.0}, "pairs", None, ("column chosen_probs_lose",)),
        ({"generate_0": [], "generate_1": []}, "pairs", None, ("column probability",)),
        ({"generate_0": [], "probability": []}, "pairs", None, ("`sparring import responses`",)),
        ({"text": "Q", "chosen": "a", "rejected": "b"}, "pairs", "q", ("column q", "text, chosen, rejected")),
    ],
)
def test_a_missing_column(
    tmp_path: Path, row: dict[str, Any], what: str, prompt: str | None, names: tuple[str, ...]
) -> None:
    path = write(tmp_path / "f.jsonl", [row])
    with refused(DataError, str(path), *names):
        recognise([path], what, prompt)


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("a b")
    with refused(DataError, "f.txt", ".jsonl", ".arrow"):
        recognise([tmp_path / "f.txt"], "pairs", None)
    (tmp_path / "f.jsonl").write_text("\n")
    with refused(DataError, "f.jsonl", "no rows"):
        recognise([tmp_path / "f.jsonl"], "pairs", None)


def test_what_official_pairs_say() -> None:
    row = scored(k=5)[0]
    entry = parse(row, Layout("sppo_pairs", None, tuple(row)))
    p = row["chosen_probs"]
    assert entry.preference == Preference(
        [0.5, p, 1 - p, 0.5], [row["chosen_probs_win"], row["chosen_probs_lose"]], 0, 1
    )
    assert entry.texts == [row["chosen"][1]["content"], row["rejected"][1]["content"]]


def test_what_official_responses_say() -> None:
    row = generated(k=5)[0]
    entry = parse(row, Layout("sppo_generated", "prompt", tuple(row)))
    assert entry.preference is not None and entry.preference.win_rates is None
    assert list(entry.preference.P) == [x for line in row["probability"] for x in line]
    scores = row["rm_scores"]
    assert scores[entry.preference.chosen] == max(scores) and scores[entry.preference.rejected] == min(scores)


@pytest.mark.parametrize(
    ("known", "p_wl"),
    [
        ({}, 1.0),
        ({"chosen_probs_win": 0.7, "chosen_probs_lose": 0.3}, 0.9),
        ({"chosen_probs_win": 0.9, "chosen_probs_lose": 0.1}, 1.0),
        ({"chosen_probs_win": 0.5, "chosen_probs_lose": 0.6}, 0.4),
        ({"chosen_probs": 0.8}, 0.8),
    ],
)
def test_the_probability_of_two_responses(known: dict[str, float], p_wl: float) -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", **known}
    entry = parse(row, Layout("pairs", "prompt", tuple(row)))
    assert entry.preference is not None
    assert list(entry.preference.P) == pytest.approx([0.5, p_wl, 1 - p_wl, 0.5], abs=1e-15)
    assert entry.preference.win_rates == (list(known.values()) if len(known) == 2 else None)


def test_a_message_list_may_say_more_than_the_column() -> None:
    system = {"role": "system", "content": "Be brief."}
    row = {"prompt": "Q", "chosen": [system, *said("Q", "a")], "rejected": [system, *said("Q", "b")]}
    assert parse(row, PAIRS).prompt == [system, *USER]
    bare = {"prompt": "Q", "chosen": said("Q", "a")[1:], "rejected": "b"}
    assert parse(bare, PAIRS).prompt == USER


PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
TWO = {"generate_0": said("Q", "a"), "generate_1": said("Q", "b"), "rm_scores": [1.0, 0.0]}
P = [[0.5, 0.9], [0.1, 0.5]]


@pytest.mark.parametrize(
    ("row", "layout", "names"),
    [
        ({"prompt": "Q", "chosen": "a"}, PAIRS, ("rejected",)),
        ({**PAIR, "chosen": None}, PAIRS, ("chosen", "null")),
        ({**PAIR, "chosen": []}, PAIRS, ("chosen", "empty")),
        ({**PAIR, "chosen": USER}, PAIRS, ("chosen", "{role: assistant, content: text}")),
        ({**PAIR, "prompt": 3}, PAIRS, ("prompt", "number")),
        ({**PAIR, "rejected": said("R", "b")}, PAIRS, ("prompt ", "rejected")),
        ({**PAIR, "chosen": said("Q", "a"), "rejected": said("R", "b")}, PAIRS, ("chosen", "rejected")),
        (
            {"chosen": said("Q", "a"), "rejected": said("R", "b")},
            Layout("pairs", None, ("chosen", "rejected")),
            ("chosen", "rejected"),
        ),
        (
            {"chosen": "a", "rejected": "b"},
            Layout("pairs", None, ("chosen", "rejected")),
            ("chosen, rejected", "--prompt-column"),
        ),
        ({**PAIR, "chosen": "half \ud800"}, PAIRS, ("chosen", "'\\ud800'")),
        (
            {"prompt": "Q", "responses": "a"},
            Layout("responses", "prompt", ("responses",)),
            ("responses", "text"),
        ),
        (
            {"prompt": "Q", "responses": ["a", 3]},
            Layout("responses", "prompt", ("responses",)),
            ("responses[1]", "number"),
        ),
        ({**PAIR, "chosen_probs_win": None, "chosen_probs_lose": 0.1}, RATED, ("chosen_probs_win", "null")),
        ({**PAIR, "chosen_probs_win": float("nan"), "chosen_probs_lose": 0.1}, RATED, ("chosen_probs_win", "nan")),
        ({**PAIR, "chosen_probs_win": 0.9, "chosen_probs_lose": -0.1}, RATED, ("chosen_probs_lose", "-0.1")),
        ({**TWO, "generate_2": [], "probability": P}, JUDGED, ("3 responses", "2")),
        ({**TWO, "probability": [[0.5]]}, JUDGED, ("probability", "2 x 2")),
        ({**TWO, "probability": [[0.5, 1], [0.5]]}, JUDGED, ("probability", "2 x 2")),
        ({**TWO, "probability": [[0.5, None], [0.1, 0.5]]}, JUDGED, ("probability", "nan")),
        ({**TWO, "probability": [[0.5, 1.1], [-0.1, 0.5]]}, JUDGED, ("probability[0][1]", "1.1", "[0, 1]")),
        ({**TWO, "probability": [[0.5, 0.9], [0.2, 0.5]]}, JUDGED, ("[0][1] = 0.9", "[1][0] = 0.2")),
        ({**TWO, "probability": [[0.6, 0.9], [0.1, 0.5]]}, JUDGED, ("[0][0] = 0.6",)),
        ({**TWO, "probability": P, "rm_scores": [1.0]}, JUDGED, ("rm_scores", "2 numbers")),
        ({**TWO, "probability": P, "rm_scores": [1, float("inf")]}, JUDGED, ("rm_scores", "inf")),
    ],
)
def test_wrong_rows(row: dict[str, Any], layout: Layout, names: tuple[str, ...]) -> None:
    with refused(ValueError, *names) as caught:
        parse(row, layout)
    assert not isinstance(caught.value, (Empty, EmptyResponse))


def test_rows_without_text_are_told_apart() -> None:
    with refused(Empty, "prompt"):
        parse({**PAIR, "prompt": " "}, PAIRS)
    with refused(EmptyResponse, "rejected"):
        parse({**PAIR, "rejected": "\n"}, PAIRS)
    with refused(EmptyResponse, "chosen"):
        parse({**PAIR, "chosen": said("Q", "")}, PAIRS)


def test_probabilities_in_single_precision_are_taken() -> None:
    apart = [[0.5, 0.9000001], [0.1, 0.5]]
    entry = parse({**TWO, "probability": apart}, JUDGED)
    assert entry.preference is not None and list(entry.preference.P) == [0.5, 0.9000001, 0.1, 0.5], "as given"
