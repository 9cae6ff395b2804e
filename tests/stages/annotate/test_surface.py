"""Surface features, each by a small example."""

import math

import numpy as np
import pytest

from sparring.stages.annotate.surface import NAMES, repeated, surface


def feature(name: str, response: str, prompt: str = "") -> float:
    return float(surface(prompt, response)[NAMES.index(name)])


def test_names_and_values_agree() -> None:
    assert surface("a prompt", "a response").shape == (len(NAMES),)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("text", ["", " ", "\n", "?!", "é", "日本語", "```"])
def test_degenerate_texts_are_finite(text: str) -> None:
    assert np.isfinite(surface(text, text)).all()


def test_length_is_logarithmic() -> None:
    assert feature("log_words", "one two three") == pytest.approx(math.log(4))
    assert feature("log_words_squared", "one two three") == pytest.approx(math.log(4) ** 2)


@pytest.mark.parametrize(
    ("text", "ends"),
    [("Yes.", 1), ('He said "yes."', 1), ("Yes and", 0), ("a)", 0), ("x\n```", 1), ("So:", 0)],
)
def test_terminal(text: str, ends: int) -> None:
    assert feature("terminal", text) == ends


def test_repeated_counts_later_occurrences() -> None:
    assert repeated(["a", "b", "a", "a"]) == 0.5
    assert repeated([]) == 0.0


def test_loops() -> None:
    loop = "go to bed " * 5  # 15 words, 13 trigrams, 3 of them distinct
    assert feature("repeated_trigrams", loop) == pytest.approx(10 / 13)
    assert feature("longest_run", "no no no yes") == pytest.approx(math.log(3))
    assert feature("repeated_lines", "a b.\na b.\nc d.\na b.") == 0.5
    assert feature("unique_words", "no no no") == pytest.approx(math.log(2) / math.log(4))
    assert feature("compression", "The cat sat. " * 30) < feature(
        "compression", "A cat sat by the old red door, then left."
    )


def test_grammar() -> None:
    assert feature("function_words", "the cat is red") == 0.5
    assert feature("function_bigrams", "the cat is in town") == pytest.approx(1 / 5)
    # one sentence start, in lower case; two words inside sentences, one capitalised
    assert feature("odd_capitals", "One two. three Four") == pytest.approx(2 / 3)


def test_characters() -> None:
    assert feature("digits", "a1b2") == 0.5
    assert feature("symbols", "a+b=") == 0.5
    assert feature("foreign", "a日") == 0.5
    assert feature("capitals", "aB") == 0.5
    assert feature("word_length", "ab abcd") == 3.0


def test_form() -> None:
    assert feature("list_items", "- a\n* b\n1. c\nd") == pytest.approx(math.log(4))
    assert feature("code", "```x```") == 1.0
    assert feature("questions", "why not ?") == 0.5
    assert feature("refusal", "I’m sorry, no.") == 1.0
    assert feature("refusal", "Sorry is a word.") == 0.0
    assert feature("first_person", "I see my cat") == 0.5
    assert feature("second_person", "you see") == 0.5


def test_prompt_overlap() -> None:
    prompt = "describe blue whales please"
    assert feature("echo", "blue cats", prompt) == 0.5
    assert feature("coverage", "blue cats", prompt) == 0.25
    assert feature("copied_trigrams", "describe blue whales now", prompt) == 0.5
