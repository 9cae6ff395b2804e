"""What the columns of a file tell, what its rows say, and every complaint about them."""

from pathlib import Path
from typing import Any

import pytest

from sparring.stages.errors import DataError
from sparring.stages.sample.layouts import EmptyResponse, Layout, Preference, parse, recognise
from sparring.stages.sample.messages import Empty
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
    ("row", "what", "prompt", "message"),
    [
        ({"prompt": "Q"}, "responses", None, "no column responses (or generate_0, generate_1 ..); there are: prompt; "),
        ({"chosen": "a", "rejected": "b"}, "responses", None, "`sparring import pairs` takes this file."),
        ({"prompt": "Q", "chosen": "a"}, "pairs", None, "no column rejected; there are: prompt, chosen; rename"),
        ({"chosen": "a", "rejected": "b", "chosen_probs_win": 1.0}, "pairs", None, "no column chosen_probs_lose; "),
        ({"generate_0": [], "generate_1": []}, "pairs", None, "no column probability; "),
        ({"generate_0": [], "probability": []}, "pairs", None, "`sparring import responses` takes responses that"),
        ({"text": "Q", "chosen": "a", "rejected": "b"}, "pairs", "q", "no column q; there are: text, chosen, rejected"),
    ],
)
def test_a_missing_column(tmp_path: Path, row: dict[str, Any], what: str, prompt: str | None, message: str) -> None:
    path = write(tmp_path / "f.jsonl", [row])
    with pytest.raises(DataError) as caught:
        recognise([path], what, prompt)
    assert str(caught.value).startswith(f"{path}: no column ") and message in str(caught.value)


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("a b")
    with pytest.raises(DataError, match=r"rows are read from \.jsonl, .*, \.arrow files; convert this one"):
        recognise([tmp_path / "f.txt"], "pairs", None)
    (tmp_path / "f.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"f\.jsonl: holds no rows; give a file with at least one"):
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
    ("row", "layout", "message"),
    [
        ({"prompt": "Q", "chosen": "a"}, PAIRS, "has no rejected"),
        ({**PAIR, "chosen": None}, PAIRS, "chosen is null, not a text or a list of messages"),
        ({**PAIR, "chosen": []}, PAIRS, "chosen is an empty list, not a text or a list of messages"),
        ({**PAIR, "chosen": USER}, PAIRS, "chosen does not end with the response as {role: assistant, content: text}"),
        ({**PAIR, "prompt": 3}, PAIRS, "prompt is a number, not a text or a list of messages"),
        ({**PAIR, "rejected": said("R", "b")}, PAIRS, "prompt and rejected have different prompts"),
        ({**PAIR, "chosen": said("Q", "a"), "rejected": said("R", "b")}, PAIRS, "different prompts"),
        (
            {"chosen": said("Q", "a"), "rejected": said("R", "b")},
            Layout("pairs", None, ("chosen", "rejected")),
            "chosen and rejected have different prompts",
        ),
        (
            {"chosen": "a", "rejected": "b"},
            Layout("pairs", None, ("chosen", "rejected")),
            "no prompt in chosen, rejected, and no column of that name: give one with --prompt-column",
        ),
        ({**PAIR, "chosen": "half \ud800"}, PAIRS, "chosen holds half a surrogate pair ('\\ud800')"),
        (
            {"prompt": "Q", "responses": "a"},
            Layout("responses", "prompt", ("responses",)),
            "responses is a text, not a",
        ),
        (
            {"prompt": "Q", "responses": ["a", 3]},
            Layout("responses", "prompt", ("responses",)),
            "responses[1] is a number",
        ),
        ({**PAIR, "chosen_probs_win": None, "chosen_probs_lose": 0.1}, RATED, "chosen_probs_win is null, not a number"),
        ({**PAIR, "chosen_probs_win": float("nan"), "chosen_probs_lose": 0.1}, RATED, "chosen_probs_win is nan, not"),
        ({**PAIR, "chosen_probs_win": 0.9, "chosen_probs_lose": -0.1}, RATED, "chosen_probs_lose is -0.1, not within"),
        ({**TWO, "generate_2": [], "probability": P}, JUDGED, "has 3 responses, the first row has 2"),
        ({**TWO, "probability": [[0.5]]}, JUDGED, "probability is not 2 x 2 numbers, one for each response"),
        ({**TWO, "probability": [[0.5, 1], [0.5]]}, JUDGED, "probability is not 2 x 2 numbers"),
        ({**TWO, "probability": [[0.5, None], [0.1, 0.5]]}, JUDGED, "probability holds nan, not a finite number"),
        ({**TWO, "probability": [[0.5, 1.1], [-0.1, 0.5]]}, JUDGED, "probability[0][1] is 1.1, not within [0, 1]"),
        ({**TWO, "probability": [[0.5, 0.9], [0.2, 0.5]]}, JUDGED, "[0][1] = 0.9 and [1][0] = 0.2 do not add up to 1"),
        ({**TWO, "probability": [[0.6, 0.9], [0.1, 0.5]]}, JUDGED, "[0][0] = 0.6 and [0][0] = 0.6 do not add up to 1"),
        ({**TWO, "probability": P, "rm_scores": [1.0]}, JUDGED, "rm_scores is not 2 numbers, one for each response"),
        ({**TWO, "probability": P, "rm_scores": [1, float("inf")]}, JUDGED, "rm_scores holds inf"),
    ],
)
def test_wrong_rows(row: dict[str, Any], layout: Layout, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(row, layout)
    assert message in str(caught.value) and not isinstance(caught.value, (Empty, EmptyResponse))


def test_rows_without_text_are_told_apart() -> None:
    with pytest.raises(Empty, match="prompt is empty"):
        parse({**PAIR, "prompt": " "}, PAIRS)
    with pytest.raises(EmptyResponse, match="rejected is empty"):
        parse({**PAIR, "rejected": "\n"}, PAIRS)
    with pytest.raises(EmptyResponse, match="chosen is empty"):
        parse({**PAIR, "chosen": said("Q", "")}, PAIRS)


def test_probabilities_in_single_precision_are_taken() -> None:
    apart = [[0.5, 0.9000001], [0.1, 0.5]]
    entry = parse({**TWO, "probability": apart}, JUDGED)
    assert entry.preference is not None and list(entry.preference.P) == [0.5, 0.9000001, 0.1, 0.5], "as given"
