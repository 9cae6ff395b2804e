"""Which rows of suites share an n-gram with the prompts that a run has trained on.

The prompts are those that the run's iterations have sampled, or before the first one all that it may sample. They pass
by part by part; in memory are the suites' n-grams (stages/evaluate/suites/overlap.py). Only what is asked is compared,
not what a suite expects as an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.sources import hub
from sparring.pipeline.suites import to_answer
from sparring.pipeline.suites.base import PublicDataset
from sparring.stages.errors import DataError, HubSilent
from sparring.stages.evaluate.suites.overlap import Index, Overlap
from sparring.stages.sample.messages import kind, notation
from sparring.stages.sample.source import rows
from sparring.stages.sample.suite_prompts import column_of
from sparring.stages.step import Input

OTHERS = {
    "truthfulqa": PublicDataset(
        title="TruthfulQA",
        repo="truthfulqa/truthful_qa",
        instructions="generation/validation-00000-of-00001.parquet",
        column="question",
    ),
    "arc_challenge": PublicDataset(
        title="ARC-Challenge",
        repo="allenai/ai2_arc",
        instructions="ARC-Challenge/test-00000-of-00001.parquet",
        column="question",
    ),
    "gsm8k": PublicDataset(
        title="GSM8K", repo="openai/gsm8k", instructions="main/test-00000-of-00001.parquet", column="question"
    ),
    "hellaswag": PublicDataset(
        title="HellaSwag", repo="Rowan/hellaswag", instructions="data/validation-00000-of-00001.parquet", column="ctx"
    ),
    "mmlu": PublicDataset(
        title="MMLU", repo="cais/mmlu", instructions="all/test-00000-of-00001.parquet", column="question"
    ),
    "winogrande": PublicDataset(
        title="WinoGrande",
        repo="allenai/winogrande",
        instructions="winogrande_xl/validation-00000-of-00001.parquet",
        column="sentence",
    ),
}
"""Compared beside the suites: the rows that are scored, as their authors' datasets have them."""


def compared_suites() -> dict[str, PublicDataset]:
    """Return what training prompts are compared with, by name."""
    return {name: suite.questions for name, suite in to_answer().items() if suite.questions} | OTHERS


class SuiteRow(NamedTuple):
    """A row of a suite's file."""

    where: str
    """`row 17`."""
    turns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A suite, and its rows that share an n-gram with the training prompts."""

    name: str
    """The suite's, or the path of its file."""
    rows: list[SuiteRow]
    short: int
    """Rows of fewer than n words, which have no n-gram."""
    overlaps: list[Overlap]


def compare(suites: dict[str, list[SuiteRow]], prompts: Sequence[Input], n: int) -> tuple[list[Compared], int]:
    """Return what each suite shares with the training prompts, and how many of those there are."""
    indexes = {name: Index([row.turns for row in suite], n) for name, suite in suites.items()}
    count = 0
    for prompt_id, turns in _training_turns(prompts):
        count += 1
        for index in indexes.values():
            index.add(prompt_id, turns)
    compared = [
        Compared(name=name, rows=suites[name], short=index.short, overlaps=index.overlapping())
        for name, index in indexes.items()
    ]
    return compared, count


def training_prompts(history: RunHistory) -> tuple[str, list[Input]]:
    """Return what the training prompts are of, in words, and the artifacts that hold them."""
    sampled = {t: history.artifact(t, "sample") for t, steps in history.steps.items() if "sample" in steps}
    if sampled:
        which = f"iteration{'s' * (len(sampled) > 1)} {', '.join(map(str, sampled))}"
        return f"sampled in {which}", [artifact for artifact in sampled.values() if artifact]
    prompts = history.artifact(0, "prompts")
    if prompts is None:
        raise DataError(f"{history.folder}: its prompts are not made yet; run `sparring run` with its overrides.")
    return "that it may sample", [prompts]


def _training_turns(prompts: Sequence[Input]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield id and turns of every training prompt once, part by part; held-out ones are left out."""
    seen: set[str] = set()
    for source in prompts:
        for part in range(1 if source.role == "prompts" else 0, source.n_parts):
            for row in source.table(part, columns=["id", "messages"]).to_pylist():
                prompt_id = row["id"].partition("~")[0]
                if prompt_id not in seen:
                    seen.add(prompt_id)
                    yield prompt_id, _turns(row["messages"])


def read_suites(files: Sequence[Path], column: str | None) -> tuple[dict[str, list[SuiteRow]], list[str]]:
    """Return the rows of each suite, named or a file, and why others are left out; without files, of all suites."""
    if not files:
        return _published(column)
    suites = {}
    for path in files:
        suite = None if path.exists() else compared_suites().get(str(path))
        if suite:
            suites[str(path)] = _rows(suite.fetch(suite.instructions, "its path"), column or suite.column)
        else:
            suites[str(path)] = _rows(path, column)
    return suites, []


def _published(column: str | None) -> tuple[dict[str, list[SuiteRow]], list[str]]:
    """Return the rows of every suite that can be had here, and why others cannot."""
    suites, absent, silent = {}, [], False
    for name, suite in compared_suites().items():
        cached = hub.cached_file(suite.kind, suite.repo, suite.instructions) if silent else None
        if silent and cached is None:
            absent.append(suite.absent(suite.instructions, "its path", "the hub does not answer"))
            continue
        try:
            path = cached or suite.fetch(suite.instructions, "its path")
        except DataError as error:
            silent = isinstance(error, HubSilent)  # the others are not asked for: each would wait as long again
            absent.append(str(error))
        else:
            suites[name] = _rows(path, column or suite.column)
    if not suites:
        raise DataError(f"no suite can be had here, and no file is named. {absent[0]}")
    return suites, absent


def _rows(path: Path, column: str | None) -> list[SuiteRow]:
    """Return the rows of a suite's file; DataError names one that holds no text."""
    name = column_of(path, column)
    found = []
    for where, values in rows(path, [name]):
        value = notation(values.get(name))
        if not isinstance(value, str | list):
            raise DataError(f"{path}: {where}: {name} is {kind(value)}, not a text or a list; see --column.")
        found.append(SuiteRow(where, _turns(value)))
    if not found:
        raise DataError(f"{path}: holds no rows; give a file with at least one.")
    return found


def _turns(value: str | list[Any]) -> tuple[str, ...]:
    """Return what is asked: a text, or each turn of a list of texts or messages that is not the assistant's."""
    if isinstance(value, str):
        return (value,)
    turns = [{"content": turn} if isinstance(turn, str) else turn for turn in value]
    return tuple(
        str(turn.get("content", ""))
        for turn in turns
        if isinstance(turn, dict) and turn.get("role", "user") != "assistant"
    )
