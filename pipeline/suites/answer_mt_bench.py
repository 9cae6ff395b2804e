"""MT-Bench's answers: two turns, each an ordinary `sample` artifact for every temperature of the protocol.

The second turn's prompts hold the first turn's answers, so its artifacts are named by them: the same answers again are
hits. A question whose first answer is empty or was never made is not asked its second turn; both places stay empty, and
are counted. The file is FastChat's model_answer, a row for each question in their order.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.pipeline.store.files import write_target, write_text
from sparring.pipeline.store.manifest import Manifest
from sparring.pipeline.suites import results
from sparring.pipeline.suites.answer import (
    Player,
    PromptFile,
    Response,
    best_responses,
    dropped_prompts,
    make,
    mean_characters,
    print_cut,
    writable,
)
from sparring.pipeline.suites.mt_bench_files import Question, read_questions
from sparring.stages.evaluate.suites import mt_bench
from sparring.stages.plain import printable
from sparring.stages.sample.messages import Message
from sparring.stages.sample.prompts import prompt_hash

Conversations = dict[Any, list[Message]]
"""Id of a question -> what is said before the answer."""


def run(player: Player, path: Path, to: Path | None) -> None:
    """Have the policy answer both turns of a file of questions, write what it says, and say what is in it."""
    questions = read_questions(path)
    to = writable(to, player.folder / "answers" / f"mt_bench-{player.name}.jsonl")
    answers: dict[Any, list[Response]] = {one.id: [] for one in questions}
    made: list[Manifest] = []
    for turn in (1, 2):
        due = [one for one in questions if turn == 1 or any(said["text"].strip() for said in answers[one.id])]
        responses, manifests = _answered(player, due, answers, turn)
        made += manifests
        for name, response in responses.items():
            answers[name].append(response)
    rows = [row(question, player.name, answers[question.id]) for question in questions]
    write_target(to, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows))
    results.write_about(to, player.about())
    _describe(to, questions, answers, made)
    print(f"next: sparring judge mt_bench {to} --judge-prompts FILE --reference FILE --base-url URL")


def conversation(question: Question, answers: Sequence[Response]) -> list[Message]:
    """Return the turns up to the next answer; answers without the white space around them, as FastChat has them."""
    messages: list[Message] = []
    for asked, response in zip(question.turns, answers, strict=False):
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": response["text"].strip()})
    return [*messages, {"role": "user", "content": question.turns[len(answers)]}]


def _answered(
    player: Player, questions: Sequence[Question], before: Mapping[Any, list[Response]], turn: int
) -> tuple[dict[Any, Response], list[Manifest]]:
    """Sample a turn, a step for each temperature; return question -> response, and what was made.

    before: the responses of the turns before.
    """
    groups: dict[float, Conversations] = {}
    for one in questions:
        temperature = mt_bench.TEMPERATURES.get(one.category, mt_bench.OTHER_TEMPERATURE)
        groups.setdefault(temperature, {})[one.id] = conversation(one, before[one.id])
    if not groups:
        return {}, []
    files = [
        PromptFile(path=_prompt_file(player.folder, group, turn), column="messages", temperature=temperature)
        for temperature, group in groups.items()
    ]
    made = make(player, files)
    samples = [one for one in made if one.step == "sample"]
    answers: dict[Any, Response] = {}
    for group, sample in zip(groups.values(), samples, strict=True):
        responses = dict(best_responses(player.opened(sample), None, player.config.win_rate))
        for name, messages in group.items():
            row_id = prompt_hash(messages)[:16]
            if row_id in responses:
                answers[name] = responses[row_id]
    return answers, made


def _prompt_file(folder: Path, conversations: Conversations, turn: int) -> Path:
    """Write conversations to a file that is named by their digest."""
    lines = [json.dumps({"question_id": name, "messages": one}) + "\n" for name, one in conversations.items()]
    text = "".join(lines)
    path = folder / "answers" / "mt_bench" / f"turn-{turn}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def row(question: Question, model: str, answers: Sequence[Response]) -> dict[str, Any]:
    """Return a row of FastChat's model_answer; a turn without an answer is empty."""
    turns = [one["text"].strip() for one in answers]
    turns += [""] * (len(question.turns) - len(turns))
    return {
        "question_id": question.id,
        "answer_id": hashlib.sha256(json.dumps([question.id, model, turns]).encode()).hexdigest()[:22],
        "model_id": model,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": time.time(),
    }


def _describe(
    to: Path, questions: Sequence[Question], answers: Mapping[Any, list[Response]], made: Sequence[Manifest]
) -> None:
    """Print what the command ends with."""
    responses = [response for given in answers.values() for response in given]
    print(
        f"{to}: {len(responses):,} answers to {len(questions):,} questions of two turns, {mean_characters(responses)}"
    )
    for one in made:
        if one.step == "sample":
            drawn = ", ".join(
                f"{key}={one.setting(f'sampler.{key}')}" for key in ("temperature", "top_p", "max_tokens")
            )
            print(f"  {one.name} ({drawn})")
    other = sorted({one.category for one in questions} - set(mt_bench.TEMPERATURES))
    if other:
        names = printable(", ".join(other))
        print(f"  not the benchmark's categories, temperature {mt_bench.OTHER_TEMPERATURE}: {names}")
    print_cut(responses)
    missing = [one.id for one in questions if len(answers[one.id]) < len(one.turns)]
    if missing:
        print(
            f"WARNING: {len(missing):,} of the questions lack an answer, which is left empty; the first is "
            f"{printable(str(missing[0]))}. {dropped_prompts(made)}"
        )
