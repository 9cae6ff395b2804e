"""MT-Bench's judging: a model on a server grades each answer from 1 to 10 by the published judge prompts.

Questions, prompts and reference answers are read from FastChat's files, none of which is part of the project. Every
reply is added to a file beside the answers when it comes; only what has no rating there is asked again.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparring.pipeline.store.files import write_text
from sparring.pipeline.suites import SUITES, Suite
from sparring.pipeline.suites.results import About, Judged, Result, Score, about_of
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.evaluate.suites import mt_bench
from sparring.stages.plain import printable

KEY = "OPENAI_API_KEY"
"""Environment variable with the server's API key, which no file and no message holds."""
FILES = "FastChat has it (github.com/lm-sys/FastChat, fastchat/llm_judge/data/{})"
MAX_TOKENS = 2048
"""Of a judge's reply, as published."""
REQUESTS = 16
"""Under way at once."""
CHECK_S, REQUEST_S = 20.0, 600.0
TURNS = {"turn_1": "turn 1", "turn_2": "turn 2", "average": "average"}
UNRATED = -1
"""What FastChat writes for a reply without a rating."""

Row = dict[str, Any]


class Question(NamedTuple):
    """What is asked in two turns."""

    id: int | str
    category: str
    turns: tuple[str, str]


class Grading(NamedTuple):
    """One thing to ask the judge."""

    question: Question
    turn: int
    prompt: mt_bench.Prompt
    text: str

    def key(self) -> str:
        """Return the name of all that the judge is told."""
        told = json.dumps([self.prompt.system, self.text])
        return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()


# The command


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
    suite = SUITES["mt_bench"]
    asked = read_questions(questions or suite.fetch(suite.instructions, "--questions FILE"))
    name, answers = read_answers(outputs, asked)
    prompts = read_prompts(_given(judge_prompts, "--judge-prompts", "judge_prompts.jsonl"))
    needed = [one for one in asked if one.category in mt_bench.WITH_REFERENCE]
    references = (
        read_turns(_given(reference, "--reference", "mt_bench/reference_answer/gpt-4.jsonl"), needed) if needed else {}
    )
    due = gradings(asked, answers, prompts, references)
    ratings, grader = _graded(outputs.absolute(), Grader(base_url, model), due, name)
    found = _figures(asked, answers, ratings) | {"model": name, "judge": grader}
    print("\n".join(_described(found, suite.rows)))
    whose = about_of(outputs)
    return Judged(found, result_of(found, suite, whose) if whose else None, outputs.parent, outputs.stem)


def result_of(found: Row, suite: Suite, whose: About) -> Result:
    """Return the figures as the report shows them."""
    scores = {
        f"{title}, 1 to 10": Score(value=one["mean"], low=one["low"], high=one["high"])
        for title, one in ((title, found[name]) for name, title in TURNS.items())
        if one["mean"] is not None
    }
    notes = []
    if found["unrated"]:
        notes.append(f"{found['unrated']:,} replies without a rating are left out of the means")
    if found["empty"]:
        notes.append(f"{found['empty']:,} of the answers are empty")
    if found["questions"] != suite.rows:
        notes.append(f"of {found['questions']:,} questions, the suite has {suite.rows:,}")
    return Result(
        suite=suite.title, judge=found["judge"], model=found["model"], scores=scores, about=whose, notes=notes
    )


def _given(path: Path | None, option: str, name: str) -> Path:
    if path is None:
        raise ConfigError(f"{option} FILE: is needed; {FILES.format(name)}.")
    return path


# The files


def read_questions(path: Path) -> list[Question]:
    """Return the questions; DataError names the row that is wrong."""
    found = []
    for where, row in _rows(path, ("question_id", "category", "turns")):
        if not isinstance(row["category"], str):
            raise DataError(f"{path}: {where}: category is not a text; mend the row.")
        found.append(Question(row["question_id"], row["category"], _turns(row["turns"], f"{path}: {where}: turns")))
    return found


def read_answers(path: Path, questions: Sequence[Question]) -> tuple[str, dict[Any, tuple[str, str]]]:
    """Return the name of the model, and its two answers to each question."""
    names = {row["model_id"] for _, row in _rows(path, ("model_id",))}
    if len(names) != 1:
        raise DataError(f"{path}: holds answers of {len(names)} models; give a file for each.")
    found = read_turns(path, questions)
    extra = sorted(str(one) for one in set(found) - {one.id for one in questions})
    if extra:
        raise DataError(f"{path}: question {extra[0]} is not among the questions; both must be of the same suite.")
    return str(names.pop()), found


def read_turns(path: Path, questions: Sequence[Question]) -> dict[Any, tuple[str, str]]:
    """Return question -> the two turns of a file of answers; DataError where one of `questions` has none."""
    found = {}
    for where, row in _rows(path, ("question_id", "choices")):
        choices = row["choices"]
        first = choices[0] if isinstance(choices, list) and choices else None
        turns = first.get("turns") if isinstance(first, dict) else None
        found[row["question_id"]] = _turns(turns, f"{path}: {where}: choices[0].turns")
    for question in questions:
        if question.id not in found:
            raise DataError(f"{path}: has no answer to question {question.id} ({question.category}); give all of them.")
    return found


def read_prompts(path: Path) -> dict[str, mt_bench.Prompt]:
    """Return the four prompts of single-answer grading."""
    found = {}
    for where, row in _rows(path, ("name", "system_prompt", "prompt_template")):
        if row["name"] in mt_bench.PROMPTS:
            texts = row["system_prompt"], row["prompt_template"]
            if not all(isinstance(text, str) for text in texts):
                raise DataError(f"{path}: {where}: system_prompt or prompt_template is not a text; mend the row.")
            found[row["name"]] = mt_bench.Prompt(row["name"], *texts)
    missing = [name for name in mt_bench.PROMPTS if name not in found]
    if missing:
        raise DataError(f"{path}: has no prompt {', '.join(missing)}; {FILES.format('judge_prompts.jsonl')}.")
    return found


def _rows(path: Path, keys: Sequence[str]) -> list[tuple[str, Row]]:
    from sparring.stages.sample.source import rows

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


def _turns(value: Any, place: str) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(text, str) for text in value):
        raise DataError(f"{place}: is not a list of two texts; mend the row.")
    return value[0], value[1]


# Asking


def gradings(
    questions: Sequence[Question],
    answers: Mapping[Any, tuple[str, str]],
    prompts: Mapping[str, mt_bench.Prompt],
    reference: Mapping[Any, tuple[str, str]],
) -> list[Grading]:
    """Return what to ask, turn 1 and turn 2 of each question."""
    found = []
    for question in questions:
        for turn in (1, 2):
            prompt = prompts[mt_bench.prompt_name(question.category, turn)]
            given = reference.get(question.id, ()) if question.category in mt_bench.WITH_REFERENCE else ()
            try:
                text = mt_bench.question(prompt, question.turns, answers[question.id], given, turn)
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise DataError(f"the judge prompt {prompt.name}: its template cannot be filled ({error}).") from None
            found.append(Grading(question, turn, prompt, text))
    return found


def _graded(outputs: Path, server: Grader, due: list[Grading], name: str) -> tuple[np.ndarray, str]:
    """Return the ratings, (questions, 2), and who gave them; the file beside the answers then holds these alone."""
    label = re.sub(r"[^A-Za-z0-9.-]+", "-", server.model)
    path = outputs.with_name(f"{outputs.stem}.judged-by-{label}.jsonl")
    known = kept(path, server.model)
    missing = [one for one in due if known.get(one.key(), {}).get("score", UNRATED) == UNRATED]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n")  # ends a line that a kill has cut
        for row in server.ask(missing, name, file):
            known[row["key"]] = row
    rows = [known[one.key()] for one in due]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{path}: the judge's replies, {len(missing):,} of {len(due):,} asked now")
    scores = np.array([row["score"] for row in rows], dtype=np.float64).reshape(-1, 2)
    return np.where(scores == UNRATED, np.nan, scores), server.model


def kept(path: Path, model: str) -> dict[str, Row]:
    """Return key -> what a judge has replied, the last of each; a line that a kill has cut is left out."""
    found: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            if row["judge"][0] == model and isinstance(row["judgment"], str):
                score = mt_bench.rating(row["judgment"])
                found[row["key"]] = {**row, "score": UNRATED if score is None else score}
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return found


class Grader:
    """The judge: one model of an OpenAI-compatible server."""

    def __init__(self, url: str, wanted: str | None) -> None:
        from sparring.stages.servers import Client, Server, Servers

        self.url, self.wanted, self.model = url.rstrip("/"), wanted, ""

        async def check(client: Client, server: Server) -> str:
            listed = await client.fetch("GET", f"{self.url}/models", CHECK_S)
            self.model = _only([str(one.get("id")) for one in listed.get("data") or []], wanted, self.url)
            return self.model

        self.pool = Servers("--base-url", KEY, [self.url], check)
        self.pool.open()

    def ask(self, due: Sequence[Grading], name: str, file: Any) -> list[Row]:
        """Return the judge's replies as rows of FastChat's file of judgments; each is written when it comes."""

        async def one(client: Any, _server: Any, grading: Grading) -> Row:
            answer = await client.fetch(
                "POST",
                f"{self.url}/chat/completions",
                REQUEST_S,
                body(self.model, grading),
                on_400="If a question with its answers is too long for it, serve it with a longer context.",
            )
            row = _row(grading, name, self.model, reply(answer, self.url))
            file.write(json.dumps(row) + "\n")
            file.flush()
            return row

        return self.pool.map(one, due, REQUESTS)


def _only(names: Sequence[str], wanted: str | None, url: str) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None or wanted not in names:
        there = printable(", ".join(names[:20])) or "none"
        raise ConfigError(f"--model {wanted}: the server at {url} has {there}; name one of them.")
    return wanted


def body(model: str, grading: Grading) -> Row:
    """Return the request: greedy, so that the same answers get the same ratings."""
    texts = {"system": grading.prompt.system, "user": grading.text}
    talk = [{"role": role, "content": text.encode(errors="replace").decode()} for role, text in texts.items()]
    return {"model": model, "messages": talk, "temperature": 0, "max_tokens": MAX_TOKENS}


def reply(answer: Mapping[str, Any], url: str) -> str:
    """Return the text of a server's answer, "" where it says nothing."""
    try:
        text = answer["choices"][0]["message"].get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise DataError(f"{url}: its answer holds no message; is it an OpenAI-compatible server?") from None
    return text if isinstance(text, str) else ""


def _row(grading: Grading, name: str, model: str, text: str) -> Row:
    score = mt_bench.rating(text)
    return {
        "question_id": grading.question.id,
        "model": name,
        "judge": [model, grading.prompt.name],
        "user_prompt": grading.text,
        "judgment": text,
        "score": UNRATED if score is None else score,
        "turn": grading.turn,
        "tstamp": time.time(),
        "key": grading.key(),
    }


# What came of it


def _figures(questions: Sequence[Question], answers: Mapping[Any, tuple[str, str]], ratings: np.ndarray) -> Row:
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
        **{name: _plain(figure._asdict()) for name, figure in mt_bench.figures(ratings).items()},
        "categories": {name: _plain(dict(zip(names, one, strict=True))) for name, one in categories.items()},
    }


def _plain(values: Row) -> Row:
    """Return values that JSON has: null for NaN."""
    return {key: None if value != value else value for key, value in values.items()}


def _described(found: Row, rows: int) -> list[str]:
    lines = [f"MT-Bench: {printable(found['model'])}, graded by {printable(found['judge'])}, 1 to 10"]
    for name, title in TURNS.items():
        one = found[name]
        low, high = _number(one["low"]), _number(one["high"])
        lines.append(f"  {title:<8}{_number(one['mean'])}  [{low}, {high}]  {one['rated']} ratings")
    lines.append(f"  {'category':<14}turn 1  turn 2  average  ratings")
    for name, one in found["categories"].items():
        cells = (_number(one[key]) for key in ("turn_1", "turn_2", "average"))
        first, second, both = cells
        lines.append(f"  {printable(name):<14}{first:>6}  {second:>6}  {both:>7}  {one['rated']:>7}")
    if found["unrated"]:
        first, second = found["unrated_by_turn"]
        lines.append(
            f"WARNING: {found['unrated']:,} replies have no rating (turn 1: {first}, turn 2: {second}) and are left "
            "out of the means; the same command asks again"
        )
    if found["empty"]:
        lines.append(f"WARNING: {found['empty']:,} of the answers are empty")
    if found["questions"] != rows:
        lines.append(f"  these are {found['questions']:,} questions, the suite has {rows}: not the published figure")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
