"""Data sets for tests: the published files where this machine has them, and files of the same layouts that are made up.

`each_data` gives a test both: made-up rows always, so that a stranger's CI runs it, and the published ones where
SPARRING_TEST_DATA (or ../shared/data) has them.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

PUBLISHED = Path(os.environ.get("SPARRING_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
WORDS = [
    *("apple", "bridge", "cloud", "dancer", "engine", "forest", "garden", "harbour", "island", "journey", "kitchen"),
    *("letter", "mirror", "notebook", "ocean", "planet", "question", "river", "signal", "tower", "umbrella", "valley"),
    *("window", "yellow", "zebra", "explain", "compare", "describe", "imagine", "measure", "compute"),
]
_held: list[TemporaryDirectory[str]] = []


def published(name: str) -> Path:
    """A file or folder of the published data; the test is skipped where it is not there."""
    path = PUBLISHED / name
    if not path.exists():
        pytest.skip(f"{name or PUBLISHED}: not on this machine; SPARRING_TEST_DATA names the folder that has it")
    return path


@cache
def made_up() -> Path:
    """A folder with the layouts of the published one and rows that are drawn from a seed."""
    _held.append(TemporaryDirectory(prefix="sparring-test-data-"))
    folder = Path(_held[-1].name)
    for name, (rows, row) in LAYOUTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = random.Random(name)
        _write(path, [row(drawn, number) for number in range(rows)])
    return folder


each_data = pytest.mark.parametrize(
    "data", [pytest.param(made_up, id="made up"), pytest.param(lambda: published(""), id="published")]
)
"""`data()` is the folder."""


def rows_of(path: Path) -> int:
    """How many rows a file has, by its own layout."""
    if path.suffix == ".json":
        return len(json.loads(path.read_text(encoding="utf-8")))
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return len(raw.splitlines())


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
        return
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)


def _text(drawn: random.Random, most: int = 40) -> str:
    """A sentence of 6 to `most` words; some with a line break, some outside ASCII."""
    words = [drawn.choice(WORDS) for _ in range(drawn.randint(6, most))]
    end = drawn.choice([".", "?", "!\n\nWhy?", " – né à Zürich."])
    return " ".join(words).capitalize() + end


def _dialogue(drawn: random.Random, answer: str) -> str:
    return f"\n\nHuman: {_text(drawn)}\n\nAssistant: {_text(drawn)}\n\nHuman: {_text(drawn)}\n\nAssistant: {answer}"


def _hh(drawn: random.Random, number: int) -> dict[str, Any]:
    empty = number % 50 == 0
    seed, answers = drawn.random(), ("" if empty else _text(drawn), _text(drawn))
    return {
        name: _dialogue(random.Random(seed), text) for name, text in zip(("chosen", "rejected"), answers, strict=True)
    }


def _llmbar(drawn: random.Random, number: int) -> dict[str, Any]:
    label = drawn.choice([1, 2])
    return {"input": _text(drawn), "output_1": _text(drawn), "output_2": _text(drawn), "label": label}


def _dpo(drawn: random.Random, number: int) -> dict[str, Any]:
    sides = {name: {"from": "gpt", "value": _text(drawn)} for name in ("chosen", "rejected")}
    return {"conversations": [{"from": "human", "value": _text(drawn)}], **sides}


CATEGORIES = ("writing", "roleplay", "extraction", "math", "coding", "reasoning", "stem", "humanities")


def _question(drawn: random.Random, number: int) -> dict[str, Any]:
    turns = [_text(drawn), _text(drawn)]
    return {"question_id": 81 + number, "category": CATEGORIES[number % 8], "turns": turns}


def _reference(drawn: random.Random, number: int) -> dict[str, Any]:
    turns = [f"reference {number} {turn}: {_text(drawn)}" for turn in (1, 2)]
    return {"question_id": 81 + number, "model_id": "gpt-4", "choices": [{"index": 0, "turns": turns}]}


def _judge_prompt(drawn: random.Random, number: int) -> dict[str, Any]:
    math, second = number in (1, 3), number > 1
    name = ("single-math-v1" if math else "single-v1") + ("-multi-turn" if second else "")
    turns = (1, 2) if second else (1,)
    names = [(f"question_{turn}", f"answer_{turn}") if second else ("question", "answer") for turn in turns]
    told = [f"[Reference {turn}]\n{{ref_answer_{turn}}}" for turn in turns] if math else []
    asked = [f"[Question]\n{{{question}}}\n[Answer]\n{{{answer}}}" for question, answer in names]
    return {"name": name, "type": "single", "system_prompt": "Grade it.", "prompt_template": "\n".join([*told, *asked])}


def _arena(drawn: random.Random, number: int) -> dict[str, Any]:
    return {"question_id": f"{number:032x}", "cluster": "made up", "turns": [{"content": _text(drawn)}]}


def _task(drawn: random.Random, number: int) -> dict[str, Any]:
    instances = [{"input": "", "output": _text(drawn)}]
    return {"id": f"task_{number}", "instruction": _text(drawn), "instances": instances}


def _pair(drawn: random.Random, number: int) -> dict[str, Any]:
    return {"prompt": _text(drawn), "chosen": _text(drawn), "rejected": _text(drawn)}


def _output(drawn: random.Random, number: int) -> dict[str, Any]:
    return {"dataset": "made_up", "instruction": _text(drawn), "output": _text(drawn), "generator": "nobody"}


Row = Callable[[random.Random, int], dict[str, Any]]
LAYOUTS: dict[str, tuple[int, Row]] = {
    "ultrafeedback/train.jsonl": (200, _pair),
    "preferences/dpo_en_demo.json": (60, _dpo),
    "preferences/hh_harmless_base_test.jsonl.gz": (100, _hh),
    "preferences/llmbar_natural.json": (40, _llmbar),
    "mt_bench/question.jsonl": (16, _question),
    "mt_bench/reference_answer_gpt-4.jsonl": (16, _reference),
    "mt_bench/judge_prompts.jsonl": (4, _judge_prompt),
    "prompts/arena_hard_v0.1.jsonl": (50, _arena),
    "prompts/self_instruct_seed_tasks.jsonl": (40, _task),
    "prompts/user_oriented_instructions.jsonl": (40, _task),
    "alpaca_eval/gemma-2b-it/model_outputs.json": (70, _output),
    "alpaca_eval/gpt4_1106_preview/model_outputs.json": (70, _output),
}
"""File -> how many rows, and one of them."""
