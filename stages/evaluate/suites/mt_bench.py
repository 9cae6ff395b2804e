"""MT-Bench's single-answer grading: what a judge is asked, the rating in its reply, and the mean of ratings. Pure.

Source: FastChat, fastchat/llm_judge (common.py, gen_judgment.py, show_result.py); Zheng et al., arXiv 2306.05685.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparring.stages.evaluate.bootstrap import paired_bootstrap

Array = NDArray[np.float64]

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""Category -> the temperature that answers to it are sampled with."""
OTHER_TEMPERATURE = 0.7
"""Of a category that is not the benchmark's own."""
WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose judge sees a reference answer."""
PROMPTS = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
PATTERNS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
"""Where a rating is looked for: the first of the first that is there at all."""
MOST = 10.0


class Prompt(NamedTuple):
    """A published judge prompt."""

    name: str
    system: str
    template: str


class MeanRating(NamedTuple):
    """A mean of ratings with its interval; NaN where there is no rating."""

    mean: float
    low: float
    high: float
    rated: int


def prompt_name(category: str, turn: int) -> str:
    """Return which prompt grades the answer of a turn, 1 or 2."""
    return f"single-{'math-' if category in WITH_REFERENCE else ''}v1{'-multi-turn' if turn == 2 else ''}"


def question(
    prompt: Prompt, questions: Sequence[str], answers: Sequence[str], reference: Sequence[str], turn: int
) -> str:
    """Return the user's message to the judge. At turn 2 it sees both turns, at turn 1 none of the second.

    questions, answers, reference: of turns 1 and 2; reference is empty where the prompt has none.
    """
    texts = {f"ref_answer_{i}": text for i, text in enumerate(reference, start=1)}
    if turn == 1:
        texts |= {"question": questions[0], "answer": answers[0]}
    else:
        texts |= {f"question_{i}": text for i, text in enumerate(questions, start=1)}
        texts |= {f"answer_{i}": text for i, text in enumerate(answers, start=1)}
    return prompt.template.format(**texts)


def rating(reply: str) -> float | None:
    """Return the rating in a judge's reply, `[[5]]` or else `[5]`; None without one, or when it is above 10.

    FastChat takes any number; one that is not of the scale, such as a year in brackets, is no rating.
    """
    for pattern in PATTERNS:
        match = pattern.search(reply)
        if match:
            value = float(match[1])
            return value if value <= MOST else None
    return None


def figures(ratings: Array, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> dict[str, MeanRating]:
    """Return the mean rating of turn 1, turn 2 and both, with bootstrap intervals over questions.

    ratings: (questions, 2) float64, 1 to 10; NaN where the judge gave none. `average` is the mean of all ratings that
    there are, as published: a question with one rating counts half as much as one with two.
    """
    present = (~np.isnan(ratings)).astype(np.float64)
    both = present.sum(axis=1, keepdims=True)
    sums = np.nansum(ratings, axis=1, keepdims=True)
    means = np.divide(sums, both, out=np.full(sums.shape, np.nan), where=both > 0)
    values, weights = np.hstack([ratings, means]), np.hstack([present, both])
    intervals = zip(*paired_bootstrap(values, resamples, confidence, seed, weights), weights.sum(axis=0), strict=True)
    names = ("turn_1", "turn_2", "average")
    return {
        name: MeanRating(float(mean), float(low), float(high), int(rated))
        for name, (mean, low, high, rated) in zip(names, intervals, strict=True)
    }


def by_category(ratings: Array, categories: Sequence[str]) -> Mapping[str, tuple[float, float, float, int]]:
    """Return category -> mean of turn 1, of turn 2, of all its ratings, and how many those are."""
    means_of = {}
    for name in dict.fromkeys(categories):
        rows = ratings[[one == name for one in categories]]
        columns = (rows[:, 0], rows[:, 1], rows.ravel())
        means = [float(np.nanmean(one)) if (~np.isnan(one)).any() else float("nan") for one in columns]
        means_of[name] = (means[0], means[1], means[2], int((~np.isnan(rows)).sum()))
    return means_of
