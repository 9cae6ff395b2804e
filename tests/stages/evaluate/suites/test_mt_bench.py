"""MT-Bench's prompts, ratings and means: by hand, and on the published files where they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring.stages.evaluate.suites import mt_bench
from tests.data import each_data

NAN = float("nan")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Good. Rating: [[5]]", 5.0),
        ("Rating: [[7.5]] or [[2]]", 7.5),
        ("Item [3] is wrong. Rating: [[10]]", 10.0),
        ("Rating: [6]", 6.0),
        ("Rating: [[0]]", 0.0),
        ("Rating: 6", None),
        ("Rating: [[rating]]", None),
        ("Rating: [[85]]", None),
        ("[2023] was a good year", None),
        ("", None),
    ],
)
def test_the_rating_in_a_reply(reply: str, rating: float | None) -> None:
    assert mt_bench.rating(reply) == rating


def test_which_prompt_grades_what() -> None:
    found = [mt_bench.prompt_name(category, turn) for category in ("writing", "coding") for turn in (1, 2)]
    assert found == ["single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn"]
    assert set(found) == set(mt_bench.PROMPTS)


def test_turn_1_sees_nothing_of_turn_2() -> None:
    given: tuple[list[str], list[str], list[str]] = (["q1", "q2"], ["{a1}", "a2"], ["r1", "r2"])
    first = mt_bench.Prompt("single-math-v1", "", "{question} {ref_answer_1} {answer}")
    assert mt_bench.question(first, *given, 1) == "q1 r1 {a1}"
    both = "{question_1} {answer_1} {question_2} {answer_2} {ref_answer_1} {ref_answer_2}"
    assert mt_bench.question(mt_bench.Prompt("", "", both), *given, 2) == "q1 {a1} q2 a2 r1 r2"
    with pytest.raises(KeyError):
        mt_bench.question(mt_bench.Prompt("", "", "{question_2}"), *given, 1)


@each_data
def test_the_suites_prompts_take_what_is_given(data: Callable[[], Path]) -> None:
    folder = data() / "mt_bench"
    prompts = {
        row["name"]: mt_bench.Prompt(row["name"], row["system_prompt"], row["prompt_template"])
        for row in lines(folder / "judge_prompts.jsonl")
    }
    questions, reference = lines(folder / "question.jsonl"), lines(folder / "reference_answer_gpt-4.jsonl")
    known = {row["question_id"]: row["choices"][0]["turns"] for row in reference}
    assert {row["category"] for row in questions} == set(mt_bench.TEMPERATURES)
    for row in questions:
        given = known[row["question_id"]] if row["category"] in mt_bench.WITH_REFERENCE else []
        for turn in (1, 2):
            prompt = prompts[mt_bench.prompt_name(row["category"], turn)]
            text = mt_bench.question(prompt, row["turns"], ["first answer", "second answer"], given, turn)
            assert row["turns"][turn - 1] in text and ("second answer" in text) == (turn == 2)
            assert (row["turns"][1] in text) == (turn == 2) or turn == 1
            assert ("Reference" in text) == bool(given) and all(one in text for one in given[:turn])


def test_the_average_is_that_of_all_ratings() -> None:
    ratings = np.array([[8.0, 6.0], [4.0, NAN], [NAN, NAN]])
    found = mt_bench.figures(ratings)
    assert [(one.mean, one.rated) for one in found.values()] == [(6.0, 2), (6.0, 1), (6.0, 3)]
    assert list(found) == ["turn_1", "turn_2", "average"]
    assert mt_bench.figures(np.array([[9.0, 3.0], [3.0, NAN]]))["average"].mean == 5.0, "not that of the turns, 4.5"
    assert found["turn_1"].low == 4.0 and found["turn_1"].high == 8.0
    none = mt_bench.figures(np.full((2, 2), NAN))["average"]
    assert np.isnan([none.mean, none.low, none.high]).all() and none.rated == 0


def test_a_questions_turns_are_drawn_together() -> None:
    """Ratings of one question that mirror each other leave the average without doubt."""
    first = np.arange(1.0, 10.0)
    found = mt_bench.figures(np.stack([first, 10.0 - first], axis=1))
    assert found["average"].low == pytest.approx(5.0) and found["average"].high == pytest.approx(5.0)
    assert found["turn_1"].low < 4.0 < 6.0 < found["turn_1"].high


def test_by_category() -> None:
    ratings = np.array([[8.0, 6.0], [4.0, NAN], [NAN, NAN]])
    found = mt_bench.by_category(ratings, ["a", "a", "b"])
    assert found["a"] == (6.0, 6.0, 6.0, 3)
    assert np.isnan(found["b"][:3]).all() and found["b"][3] == 0
