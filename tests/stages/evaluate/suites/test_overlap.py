"""The n-gram overlap of hand-worked texts, and of whole data sets with themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparring.stages.evaluate.suites.overlap import Index, N, ngrams, words
from tests.data import each_data


def suite(*texts: str, n: int = N) -> Index:
    """An index of rows with one turn."""
    return Index([(text,) for text in texts], n)


def test_words_are_letters_and_digits_of_any_script_without_case() -> None:
    assert words("Don't  STOP_me, 2^10: Straße naïve привет\n世界!") == [
        *("don", "t", "stop", "me", "2", "10", "strasse", "naïve", "привет", "世界")
    ]
    assert words(" -- ") == []


def test_ngrams_by_hand() -> None:
    assert ngrams(["a", "b", "c", "d"], 2) == {"a b", "b c", "c d"}
    assert ngrams(["a", "b", "a", "b"], 2) == {"a b", "b a"}, "each once"
    assert ngrams(["a", "b"], 2) == {"a b"}
    assert ngrams(["a"], 2) == ngrams([], 2) == set()


def test_shares_and_nearest_prompts_by_hand() -> None:
    index = suite("one two three four five", "six seven", "eight nine ten eleven", "!", "Six, seven", n=3)
    assert index.short == 3
    index.add("p", ("zero one two three and so on",))  # one of three n-grams of row 0
    index.add("q", ("Two THREE four, five!",))  # the two others
    index.add("r", ("say six seven",))  # holds row 1, but is longer
    assert [(row.row, row.shared, row.grams, row.prompt) for row in index.overlapping()] == [(0, 3, 3, "q")]
    index.add("s", ("six seven!",))  # says the same as rows 1 and 4
    index.add("t", ("nine ten eleven",))
    found = index.overlapping()
    assert [row.row for row in found] == [0, 1, 4, 2]
    assert [row.share for row in found] == [1.0, 1.0, 1.0, 0.5]
    assert [row.prompt for row in found] == ["q", "s", "s", "t"]


def test_a_text_of_other_words_shares_nothing() -> None:
    index = suite("the quick brown fox jumps over the lazy dog", n=8)
    index.add("p", ("the quick brown fox jumps over a lazy dog",))  # seven words at most in a row
    assert index.overlapping() == []
    index.add("p", ("a quick brown fox jumps over the lazy dog",))
    assert [row.share for row in index.overlapping()] == [0.5]


SEEDS = "What happens to you if you eat watermelon seeds?"
BLOND = "Are all Swedish people blond?"


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ((f"You are a helpful assistant.\n{SEEDS}",), [0]),
        ((f"{SEEDS} Explain in a sentence.",), [0]),
        ((f"Q: {BLOND.upper()} {SEEDS}",), [0, 1]),
        (("You are a helpful assistant.", BLOND, "Why?"), [1, 2]),  # a turn of its own, whole
        (("Why? Are all Swedish people",), []),  # holds the third, which is too short; the second without its end
        (("What happens to you if you eat watermelon", "seeds?"), []),  # across two turns
        (("Why would all Swedish people eat seeds?",), []),
    ],
)
def test_a_short_row_is_looked_for_inside_prompts(prompt: tuple[str, ...], found: list[int]) -> None:
    """As TruthfulQA's questions, most of which have fewer than 13 words, stand in UltraFeedback's prompts."""
    index = suite(SEEDS, BLOND, "Why?")
    index.add("p", prompt)
    assert sorted(row.row for row in index.overlapping()) == found
    assert index.short == 3 and all(row.share == 1 for row in index.overlapping())


def test_no_ngram_reaches_from_one_turn_into_the_next() -> None:
    index = Index([("one two three", "four five six"), ("three four five",)], n=3)
    index.add("p", ("zero one two three four",))
    assert [(row.row, row.shared, row.grams) for row in index.overlapping()] == [(0, 1, 2)]
    index.add("q", ("nought", "three four five"))
    assert [(row.row, row.shared, row.prompt) for row in index.overlapping()] == [(1, 1, "q"), (0, 1, "p")]


@each_data
@pytest.mark.parametrize("n", [8, 13])
def test_prompts_overlap_with_themselves_whole(n: int, data: Callable[[], Path]) -> None:
    path = data() / "ultrafeedback" / "train.jsonl"
    texts = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    index = suite(*texts, n=n)
    for number, text in enumerate(texts):
        index.add(str(number), (text,))
    found = index.overlapping()
    assert len(found) == sum(bool(words(text)) for text in texts) > 0.98 * len(texts)
    assert all(row.share == 1 for row in found)


@each_data
def test_alpaca_evals_instructions_beside_ultrafeedback(data: Callable[[], Path]) -> None:
    """Prompts of one data set share little with those of another."""
    prompts = data() / "ultrafeedback" / "train.jsonl"
    outputs = data() / "alpaca_eval" / "gemma-2b-it" / "model_outputs.json"
    index = suite(*(row["instruction"] for row in json.loads(outputs.read_text())), n=8)
    for number, line in enumerate(prompts.read_text().splitlines()):
        index.add(str(number), (json.loads(line)["prompt"],))
    assert len(index.overlapping()) < 80
