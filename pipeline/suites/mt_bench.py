"""MT-Bench, and its judging: a model on a server grades each answer from 1 to 10 by the published judge prompts.

Every reply is added to a file beside the answers when it comes; only what has no rating there is asked again.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from sparring.pipeline.store.files import write_text
from sparring.pipeline.suites import answer_mt_bench
from sparring.pipeline.suites.base import Suite, only_model
from sparring.pipeline.suites.mt_bench_files import (
    QUESTIONS,
    Question,
    Turns,
    read_answers,
    read_prompts,
    read_questions,
    read_turns,
    required,
)
from sparring.pipeline.suites.results import Judged, Result, Score, about_of
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.evaluate.suites import mt_bench
from sparring.stages.plain import printable
from sparring.stages.servers import Client, Server, Servers

KEY = "OPENAI_API_KEY"
"""Environment variable with the server's API key, which no file and no message holds."""
ALL = 80
"""Questions of the suite."""
MAX_TOKENS = 2048
"""Of a judge's reply, as published."""
REQUESTS = 16
"""Under way at once."""
CHECK_S, REQUEST_S = 20.0, 600.0
MEANS = {"turn_1": "turn 1", "turn_2": "turn 2", "average": "average"}
UNRATED = -1
"""What FastChat writes for a reply without a rating."""

Row = dict[str, Any]


class Grading(NamedTuple):
    """One answer to grade: the judge prompt, and the text that is made of it."""

    question: Question
    turn: int
    prompt: mt_bench.Prompt
    text: str

    def key(self) -> str:
        """Return the digest of all that the judge reads."""
        texts = json.dumps([self.prompt.system, self.text])
        return hashlib.sha256(texts.encode(errors="surrogatepass")).hexdigest()


def judge(
    outputs: Path,
    *,
    questions: Path | None,
    judge_prompts: Path | None,
    reference: Path | None,
    base_url: str | None,
    model: str | None,
) -> Judged:
    """Print and return the figures of a file of answers."""
    if not base_url:
        raise ConfigError("--base-url URL: MT-Bench is graded by a model that an OpenAI-compatible server has.")
    asked = read_questions(questions or QUESTIONS.fetch(QUESTIONS.instructions, "--questions FILE"))
    name, answers = read_answers(outputs, asked)
    prompts = read_prompts(required(judge_prompts, "--judge-prompts", "judge_prompts.jsonl"))
    with_reference = [one for one in asked if one.category in mt_bench.WITH_REFERENCE]
    references = {}
    if with_reference:
        path = required(reference, "--reference", "mt_bench/reference_answer/gpt-4.jsonl")
        references = read_turns(path, with_reference)
    due = gradings(asked, answers, prompts, references)
    grader = Grader(base_url, model)
    figures = _figures(asked, answers, _graded(outputs.absolute(), grader, due, name))
    figures |= {"model": name, "judge": grader.model}
    notes = _notes(figures)
    print("\n".join([*_described(figures), *(f"WARNING: {note}" for note in notes)]))
    if figures["unrated"]:
        print("  the same command asks again for the ratings that lack")
    scores = {
        f"{title}, 1 to 10": Score(value=figures[key]["mean"], low=figures[key]["low"], high=figures[key]["high"])
        for key, title in MEANS.items()
        if figures[key]["mean"] is not None
    }
    whose = about_of(outputs)
    result = None
    if whose:
        result = Result(suite=QUESTIONS.title, judge=grader.model, model=name, scores=scores, about=whose, notes=notes)
    return Judged(figures, result, outputs.parent, outputs.stem)


# Asking


def gradings(
    questions: Sequence[Question],
    answers: Mapping[Any, Turns],
    prompts: Mapping[str, mt_bench.Prompt],
    references: Mapping[Any, Turns],
) -> list[Grading]:
    """Return what to ask the judge: turn 1 and turn 2 of each question."""
    due = []
    for question in questions:
        for turn in (1, 2):
            prompt = prompts[mt_bench.prompt_name(question.category, turn)]
            reference = references.get(question.id, ()) if question.category in mt_bench.WITH_REFERENCE else ()
            try:
                text = mt_bench.question(prompt, question.turns, answers[question.id], reference, turn)
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise DataError(f"the judge prompt {prompt.name}: its template cannot be filled ({error}).") from None
            due.append(Grading(question, turn, prompt, text))
    return due


def _graded(outputs: Path, grader: Grader, due: list[Grading], name: str) -> NDArray[np.float64]:
    """Return the ratings, (questions, 2), NaN without one; the file beside the answers then holds these alone."""
    label = re.sub(r"[^A-Za-z0-9.-]+", "-", grader.model)
    path = outputs.with_name(f"{outputs.stem}.judged-by-{label}.jsonl")
    replies = read_replies(path, grader.model)
    missing = [one for one in due if replies.get(one.key(), {}).get("score", UNRATED) == UNRATED]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n")  # ends a line that a kill has cut
        for row in grader.ask(missing, name, file):
            replies[row["key"]] = row
    rows = [replies[one.key()] for one in due]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{path}: the judge's replies, {len(missing):,} of {len(due):,} asked now")
    scores = np.array([row["score"] for row in rows], dtype=np.float64).reshape(-1, 2)
    return np.where(scores == UNRATED, np.nan, scores)


def read_replies(path: Path, model: str) -> dict[str, Row]:
    """Return key -> what a judge has replied, the last of each; a line that a kill has cut is left out."""
    replies: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            if row["judge"][0] == model and isinstance(row["judgment"], str):
                replies[row["key"]] = {**row, "score": _score(row["judgment"])}
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return replies


def _score(text: str) -> float:
    rating = mt_bench.rating(text)
    return UNRATED if rating is None else rating


class Grader:
    """The judge: one model of an OpenAI-compatible server."""

    def __init__(self, url: str, wanted: str | None) -> None:
        self.url, self.model = url.rstrip("/"), ""

        async def check(client: Client, server: Server) -> str:
            listed = await client.fetch("GET", f"{self.url}/models", CHECK_S)
            self.model = only_model([str(one.get("id")) for one in listed.get("data") or []], wanted, self.url)
            return self.model

        self.pool = Servers("--base-url", KEY, [self.url], check)
        self.pool.open()

    def ask(self, due: Sequence[Grading], name: str, file: TextIO) -> list[Row]:
        """Return the judge's replies as rows of FastChat's file of judgments; each is written when it comes.

        Sampling is greedy, so that the same answers get the same ratings.
        """

        async def one(client: Client, _server: Server, grading: Grading) -> Row:
            texts = {"system": grading.prompt.system, "user": grading.text}
            body = {
                "model": self.model,
                "messages": [
                    {"role": role, "content": text.encode(errors="replace").decode()} for role, text in texts.items()
                ],
                "temperature": 0,
                "max_tokens": MAX_TOKENS,
            }
            on_400 = "If a question with its answers is too long for it, serve it with a longer context."
            answer = await client.fetch("POST", f"{self.url}/chat/completions", REQUEST_S, body, on_400=on_400)
            try:
                text = answer["choices"][0]["message"].get("content")
            except (KeyError, IndexError, TypeError, AttributeError):
                raise DataError(
                    f"{self.url}: its answer holds no message; is it an OpenAI-compatible server?"
                ) from None
            text = text if isinstance(text, str) else ""
            row = {
                "question_id": grading.question.id,
                "model": name,
                "judge": [self.model, grading.prompt.name],
                "user_prompt": grading.text,
                "judgment": text,
                "score": _score(text),
                "turn": grading.turn,
                "tstamp": time.time(),
                "key": grading.key(),
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            return row

        return self.pool.map(one, due, REQUESTS)


# Figures


def _figures(questions: Sequence[Question], answers: Mapping[Any, Turns], ratings: NDArray[np.float64]) -> Row:
    unrated = int(np.isnan(ratings).sum())
    if unrated == ratings.size:
        raise DataError(f"none of the judge's {ratings.size:,} replies has a rating; take a judge that keeps to it.")
    categories = mt_bench.by_category(ratings, [one.category for one in questions])
    names = ("turn_1", "turn_2", "average", "rated")
    return {
        "suite": "mt_bench",
        "questions": len(questions),
        "unrated": unrated,
        "unrated_by_turn": [int(n) for n in np.isnan(ratings).sum(axis=0)],
        "empty": sum(not text.strip() for one in questions for text in answers[one.id]),
        **{name: _without_nan(figure._asdict()) for name, figure in mt_bench.figures(ratings).items()},
        "categories": {name: _without_nan(dict(zip(names, one, strict=True))) for name, one in categories.items()},
    }


def _without_nan(values: Row) -> Row:
    """Return values that JSON has: null for NaN."""
    return {key: None if value != value else value for key, value in values.items()}


def _notes(figures: Row) -> list[str]:
    """Return what must be said beside the figures."""
    notes = []
    if figures["unrated"]:
        first, second = figures["unrated_by_turn"]
        notes.append(
            f"{figures['unrated']:,} replies have no rating (turn 1: {first}, turn 2: {second}) and are left out of "
            "the means"
        )
    if figures["empty"]:
        notes.append(f"{figures['empty']:,} of the answers are empty")
    if figures["questions"] != ALL:
        notes.append(f"these are {figures['questions']:,} questions, the suite has {ALL}: not the published figure")
    return notes


def _described(figures: Row) -> list[str]:
    lines = [f"MT-Bench: {printable(figures['model'])}, graded by {printable(figures['judge'])}, 1 to 10"]
    for key, title in MEANS.items():
        one = figures[key]
        low, high = _number(one["low"]), _number(one["high"])
        lines.append(f"  {title:<8}{_number(one['mean'])}  [{low}, {high}]  {one['rated']} ratings")
    lines.append(f"  {'category':<14}turn 1  turn 2  average  ratings")
    for name, one in figures["categories"].items():
        first, second, both = (_number(one[key]) for key in MEANS)
        lines.append(f"  {printable(name):<14}{first:>6}  {second:>6}  {both:>7}  {one['rated']:>7}")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


SUITE = Suite(questions=QUESTIONS, answer=answer_mt_bench.run, judge=judge)
