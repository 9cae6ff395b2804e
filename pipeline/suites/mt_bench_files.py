"""FastChat's files of MT-Bench: questions, answers, reference answers, judge prompts. The project has none of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparring.pipeline.suites.base import PublicDataset
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.evaluate.suites import mt_bench
from sparring.stages.sample.source import rows

QUESTIONS = PublicDataset(
    title="MT-Bench", repo="lmsys/mt-bench", kind="space", instructions="data/mt_bench/question.jsonl"
)
PLACE = "FastChat has it (github.com/lm-sys/FastChat, fastchat/llm_judge/data/{})"
Turns = tuple[str, str]
"""A text for each of the two turns."""


class Question(NamedTuple):
    """What is asked in two turns."""

    id: int | str
    category: str
    turns: Turns


def required(path: Path | None, option: str, name: str) -> Path:
    """Return the file of an option; ConfigError says where to get it."""
    if path is None:
        raise ConfigError(f"{option} FILE: is needed; {PLACE.format(name)}.")
    return path


def read_questions(path: Path) -> list[Question]:
    """Return the questions; DataError names the row that is wrong."""
    questions = []
    for where, row in _rows(path, ("question_id", "category", "turns")):
        if not isinstance(row["category"], str):
            raise DataError(f"{path}: {where}: category is not a text; mend the row.")
        questions.append(Question(row["question_id"], row["category"], _turns(row["turns"], f"{path}: {where}: turns")))
    return questions


def read_answers(path: Path, questions: Sequence[Question]) -> tuple[str, dict[Any, Turns]]:
    """Return the name of the model, and its answers by question."""
    names = {row["model_id"] for _, row in _rows(path, ("model_id",))}
    if len(names) != 1:
        raise DataError(f"{path}: holds answers of {len(names)} models; give a file for each.")
    answers = read_turns(path, questions)
    extra = sorted(str(one) for one in set(answers) - {one.id for one in questions})
    if extra:
        raise DataError(f"{path}: question {extra[0]} is not among the questions; both must be of the same suite.")
    return str(names.pop()), answers


def read_turns(path: Path, questions: Sequence[Question]) -> dict[Any, Turns]:
    """Return the answers by question; DataError where one of `questions` has none."""
    answers = {}
    for where, row in _rows(path, ("question_id", "choices")):
        choices = row["choices"]
        first = choices[0] if isinstance(choices, list) and choices else None
        turns = first.get("turns") if isinstance(first, dict) else None
        answers[row["question_id"]] = _turns(turns, f"{path}: {where}: choices[0].turns")
    for question in questions:
        if question.id not in answers:
            raise DataError(f"{path}: has no answer to question {question.id} ({question.category}); give all of them.")
    return answers


def read_prompts(path: Path) -> dict[str, mt_bench.Prompt]:
    """Return the four prompts of single-answer grading by name."""
    prompts = {}
    for where, row in _rows(path, ("name", "system_prompt", "prompt_template")):
        if row["name"] in mt_bench.PROMPTS:
            texts = row["system_prompt"], row["prompt_template"]
            if not all(isinstance(text, str) for text in texts):
                raise DataError(f"{path}: {where}: system_prompt or prompt_template is not a text; mend the row.")
            prompts[row["name"]] = mt_bench.Prompt(row["name"], *texts)
    missing = [name for name in mt_bench.PROMPTS if name not in prompts]
    if missing:
        raise DataError(f"{path}: has no prompt {', '.join(missing)}; {PLACE.format('judge_prompts.jsonl')}.")
    return prompts


def _rows(path: Path, keys: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return (place, row) of every row of a file; DataError where one lacks a key, or has another's question_id."""
    found = list(rows(path, keys))
    seen: set[Any] = set()
    for where, row in found:
        absent = [key for key in keys if key not in row]
        if absent:
            raise DataError(f"{path}: {where}: no {absent[0]}; there are: {', '.join(row) or 'none'}; mend the row.")
        if "question_id" not in keys:
            continue
        if not isinstance(row["question_id"], int | str):
            raise DataError(f"{path}: {where}: question_id is not a number or a text; mend the row.")
        if row["question_id"] in seen:
            raise DataError(f"{path}: {where}: question {row['question_id']} is there twice; leave one of them.")
        seen.add(row["question_id"])
    if not found:
        raise DataError(f"{path}: holds no rows.")
    return found


def _turns(value: Any, place: str) -> Turns:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(text, str) for text in value):
        raise DataError(f"{place}: is not a list of two texts; mend the row.")
    return value[0], value[1]
