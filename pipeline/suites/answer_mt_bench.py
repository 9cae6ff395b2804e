"""MT-Bench's answers: two turns, each an ordinary `sample` artifact for every temperature of the protocol.

The second turn's prompts hold the first turn's answers, so its artifacts are named by them: the same answers again are
hits. A question whose first answer is empty or was never made is not asked its second turn; both places stay empty, and
are counted. The file is FastChat's model_answer, a row for each question in their order.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.pipeline.store.files import write_target, write_text
from sparring.pipeline.store.manifest import Manifest
from sparring.pipeline.suites import results
from sparring.pipeline.suites.answer import File, Player, Response, about, best, make, opened_of, target
from sparring.pipeline.suites.judge_mt_bench import Question, read_questions
from sparring.stages.evaluate.suites import mt_bench
from sparring.stages.plain import printable
from sparring.stages.sample.messages import Message
from sparring.stages.sample.prompts import prompt_hash

Talks = dict[Any, list[Message]]
"""Question -> what is said before the answer."""


def run(player: Player, path: Path, to: Path | None) -> None:
    """Have the policy answer both turns of a file of questions, write what it says, and say what is in it."""
    questions = read_questions(path)
    to = target(to, player.folder / "answers" / f"mt_bench-{player.name}.jsonl")
    given, made = answer(player, questions)
    rows = [row(question, player.name, given.get(question.id, [])) for question in questions]
    write_target(to, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows))
    results.write_about(to, about(player))
    print("\n".join(described(to, questions, given, made)))
    print(f"next: sparring judge mt_bench {to} --judge-prompts FILE --reference FILE --base-url URL")


def answer(player: Player, questions: Sequence[Question]) -> tuple[dict[Any, list[Response]], list[Manifest]]:
    """Return question -> the responses that there are, of turn 1 and turn 2, and what was made."""
    given: dict[Any, list[Response]] = {}
    made: list[Manifest] = []
    for turn in (1, 2):
        talks = {one.id: _talk(one, given.get(one.id, [])) for one in questions if turn == 1 or _said(given, one.id)}
        if talks:
            responses, manifests = _answered(player, questions, talks, turn)
            made += manifests
            for name, response in responses.items():
                given.setdefault(name, []).append(response)
    return given, made


def _said(given: Mapping[Any, list[Response]], name: Any) -> bool:
    return name in given and bool(given[name][0]["text"].strip())


def _talk(question: Question, given: Sequence[Response]) -> list[Message]:
    """Return the turns up to the next answer; answers without the white space around them, as FastChat has them."""
    talk: list[Message] = []
    for asked, response in zip(question.turns, given, strict=False):
        talk.append({"role": "user", "content": asked})
        talk.append({"role": "assistant", "content": response["text"].strip()})
    return [*talk, {"role": "user", "content": question.turns[len(given)]}]


def _answered(
    player: Player, questions: Sequence[Question], talks: Talks, turn: int
) -> tuple[dict[Any, Response], list[Manifest]]:
    """Sample a turn, a step for each temperature; return question -> response, and what was made."""
    groups: dict[float, Talks] = {}
    for one in questions:
        if one.id in talks:
            heat = mt_bench.TEMPERATURES.get(one.category, mt_bench.OTHER_TEMPERATURE)
            groups.setdefault(heat, {})[one.id] = talks[one.id]
    files = [
        File(path=write(player.folder, group, turn), column="messages", temperature=heat)
        for heat, group in groups.items()
    ]
    made = make(player, files)
    samples = [one for one in made if one.step == "sample"]
    found: dict[Any, Response] = {}
    for group, sample in zip(groups.values(), samples, strict=True):
        chosen = dict(best(opened_of(player, sample), None, player.config.win_rate))
        names = {name: prompt_hash(talk)[:16] for name, talk in group.items()}
        found |= {name: chosen[row_id] for name, row_id in names.items() if row_id in chosen}
    return found, made


def write(folder: Path, talks: Talks, turn: int) -> Path:
    """Write what is asked to a file that is named by it."""
    lines = [json.dumps({"question_id": name, "messages": talk}) + "\n" for name, talk in talks.items()]
    text = "".join(lines)
    path = folder / "answers" / "mt_bench" / f"turn-{turn}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def row(question: Question, model: str, given: Sequence[Response]) -> dict[str, Any]:
    """Return a row of FastChat's model_answer."""
    turns = [one["text"].strip() for one in given]
    turns += [""] * (len(question.turns) - len(turns))
    name = hashlib.sha256(json.dumps([question.id, model, turns]).encode()).hexdigest()[:22]
    choices = [{"index": 0, "turns": turns}]
    return {
        "question_id": question.id,
        "answer_id": name,
        "model_id": model,
        "choices": choices,
        "tstamp": time.time(),
    }


def described(
    to: Path, questions: Sequence[Question], given: Mapping[Any, list[Response]], made: Sequence[Manifest]
) -> list[str]:
    """Return the lines that the command ends with."""
    samples = [one for one in made if one.step == "sample"]
    responses = [one for name in given for one in given[name]]
    characters = sum(len(one["text"].strip()) for one in responses) / max(1, len(responses))
    drawn = ", ".join(f"{key}={samples[0].setting(f'sampler.{key}')}" for key in ("top_p", "max_tokens"))
    lines = [
        f"{to}: {len(responses):,} answers to {len(questions):,} questions of two turns, {characters:,.0f} characters "
        "on average",
        *(
            f"  sample-{one.fingerprint[:8]} (temperature={one.setting('sampler.temperature')}, {drawn})"
            for one in samples
        ),
    ]
    other = sorted({one.category for one in questions} - set(mt_bench.TEMPERATURES))
    if other:
        lines.append(
            f"  not the benchmark's categories, temperature {mt_bench.OTHER_TEMPERATURE}: {printable(', '.join(other))}"
        )
    cut, empty = sum(one["finish"] == "length" for one in responses), sum(not one["text"].strip() for one in responses)
    if cut or empty:
        lines.append(f"  {cut:,} were cut at sampler.max_tokens, {empty:,} are empty")
    missing = [one.id for one in questions if len(given.get(one.id, [])) < len(one.turns)]
    if missing:
        dropped = Counter(reason for one in made for reason, n in one.rows["dropped"].items() for _ in range(n))
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(dropped.items()) if reason != "duplicate")
        lines.append(
            f"WARNING: {len(missing):,} of the questions have not both answers, what lacks is empty; the first is "
            f"{printable(str(missing[0]))}. Prompts dropped: {reasons or 'none'}."
            + (" prompts.max_tokens is too low." if dropped["too_long"] else "")
        )
    return lines
