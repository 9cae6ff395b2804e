"""`sparring contamination`: which rows of suites share an n-gram with the prompts that a run has trained on.

    sparring contamination myrun                                      # with every suite that can be had
    sparring contamination myrun alpaca_eval mt_bench/question.jsonl --n 8 --json overlap.json

What is found stands in `sparring report` from then on. The prompts are those that the run's iterations have sampled,
or before the first one all that it may sample. They pass by part by part; in memory are the suites' n-grams
(stages/evaluate/suites/overlap.py). Only what is asked is compared, not what a suite expects as an answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from rich.table import Table
from rich.text import Text

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Column, Run, Runs
from sparring.pipeline.report.terminal import stdout_console
from sparring.pipeline.runs import run_history
from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.sources import hub
from sparring.pipeline.store.files import check_target, write_target
from sparring.pipeline.suites import COMPARED, results
from sparring.stages.errors import ConfigError, DataError, HubSilent
from sparring.stages.evaluate.suites.overlap import Index, Overlap
from sparring.stages.plain import printable
from sparring.stages.sample.messages import kind, notation
from sparring.stages.sample.source import rows
from sparring.stages.sample.suite_prompts import column_of
from sparring.stages.step import Input

WORST = 5
"""Rows of a suite that are shown."""
SHOWN = 60
"""Characters of a row there."""


class Asked(NamedTuple):
    """A row of a suite's file."""

    where: str
    turns: tuple[str, ...]


def run(
    run: Run,
    files: Annotated[
        list[Path],
        options.words("suites by name, or files of prompts (default: every known suite)", "SUITE", options.place),
    ],
    n: Annotated[int, options.value("N", "words in a row that count as an overlap; 8 finds more")] = 13,
    column: Column = None,
    to: Annotated[Path | None, options.path("FILE", "file to write figures and overlapping rows to", "--json")] = None,
    runs: Runs = RUNS,
) -> None:
    """Which rows of suites do the training prompts hold?

    Example: sparring contamination myrun alpaca_eval --n 8 --json overlap.json
    """
    if n < 2:
        raise ConfigError(f"--n {n}: an n-gram has 2 words or more; 13 is usual, 8 finds more.")
    if to:
        check_target(to, "--json")
    history = run_history.open_run(runs, run)
    what, played = training(history)
    suites, absent = _suites(files, column)
    indexes = {path: Index([row.turns for row in found], n) for path, found in suites.items()}
    prompts = 0
    for name, turns in texts(played):
        prompts += 1
        for index in indexes.values():
            index.add(name, turns)
    found = {path: index.overlapping() for path, index in indexes.items()}
    show(what, prompts, n, suites, indexes, found)
    for line in absent:
        print(printable(f"left out: {line}"))
    kept = [
        results.Overlap(suite=path, n=n, rows=len(suites[path]), overlapping=len(found[path]), prompts=prompts, of=what)
        for path in suites
    ]
    print(f"{results.write_overlaps(history.folder / 'answers', kept)}: what `sparring report` shows of it")
    if to:
        figures = [_figures(path, suites[path], indexes[path], found[path]) for path in suites]
        facts = {"run": run, "prompts": prompts, "of": what, "n": n, "suites": figures}
        write_target(to, json.dumps(facts, indent=2) + "\n")


# What is compared


def training(history: RunHistory) -> tuple[str, list[Input]]:
    """Return what the training prompts are of, in words, and the artifacts that hold them."""
    sampled = [t for t, found in history.steps.items() if "sample" in found]
    if sampled:
        which = f"iteration{'s' * (len(sampled) > 1)} {', '.join(map(str, sampled))}"
        return f"sampled in {which}", list(filter(None, (history.artifact(t, "sample") for t in sampled)))
    prompts = history.artifact(0, "prompts")
    if prompts is None:
        raise DataError(f"{history.folder}: its prompts are not made yet; run `sparring run` with its overrides.")
    return "that it may sample", [prompts]


def texts(played: Sequence[Input]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield id and turns of every training prompt once, part by part; held-out ones are left out."""
    seen: set[str] = set()
    for source in played:
        for part in range(1 if source.role == "prompts" else 0, source.n_parts):
            for row in source.table(part, columns=["id", "messages"]).to_pylist():
                name = row["id"].partition("~")[0]
                if name not in seen:
                    seen.add(name)
                    yield name, _said(row["messages"])


def _suites(files: Sequence[Path], column: str | None) -> tuple[dict[str, list[Asked]], list[str]]:
    """Return the rows of each suite, and why others are left out; without files, of every suite that can be had."""
    if files:
        return {str(path): read(*_file(path, column)) for path in files}, []
    found, absent, silent = {}, [], False
    for name, suite in COMPARED.items():
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
            found[name] = read(path, column or suite.column)
    if not found:
        raise DataError(f"no suite can be had here, and no file is named. {absent[0]}")
    return found, absent


def _file(path: Path, column: str | None) -> tuple[Path, str | None]:
    """Return file and column of a suite that is named by its file, or by its name."""
    suite = COMPARED.get(str(path))
    if suite is None or path.exists():
        return path, column
    return suite.fetch(suite.instructions, "its path"), column or suite.column


def read(path: Path, column: str | None) -> list[Asked]:
    """Return the rows of a suite's file; DataError names one that holds no text."""
    name = column_of(path, column)
    found = []
    for where, values in rows(path, [name]):
        value = notation(values.get(name))
        if not isinstance(value, str | list):
            raise DataError(f"{path}: {where}: {name} is {kind(value)}, not a text or a list; see --column.")
        found.append(Asked(where, _said(value)))
    if not found:
        raise DataError(f"{path}: holds no rows; give a file with at least one.")
    return found


def _said(value: Any) -> tuple[str, ...]:
    """Return what is asked: a text, or each turn of a list of texts or messages that is not the assistant's."""
    if isinstance(value, str):
        return (value,)
    turns = [{"content": turn} if isinstance(turn, str) else turn for turn in value]
    return tuple(
        str(turn.get("content", ""))
        for turn in turns
        if isinstance(turn, dict) and turn.get("role", "user") != "assistant"
    )


# What came of it


def show(
    what: str,
    prompts: int,
    n: int,
    suites: dict[str, list[Asked]],
    indexes: dict[str, Index],
    found: dict[str, list[Overlap]],
) -> None:
    """Print a line for each suite, then its worst rows."""
    out = stdout_console()
    table = Table(title=f"{n}-grams of {prompts:,} training prompts ({what})", title_justify="left")
    table.add_column("suite", overflow="fold")
    for name in ("rows", f"under {n} words", "overlapping", "share"):
        table.add_column(name, justify="right")
    for path, rows_ in suites.items():
        many = len(found[path])
        cells = (f"{len(rows_):,}", f"{indexes[path].short:,}", f"{many:,}", f"{many / len(rows_):.1%}")
        table.add_row(Text(printable(path)), *cells)
    out.print(table)
    for path, rows_ in suites.items():
        for row in found[path][:WORST]:
            text = " ".join(printable(" ".join(rows_[row.row].turns)).split())[:SHOWN]
            line = (
                f"{printable(path)}: {rows_[row.row].where}: {row.shared} of {row.grams} as prompt {row.prompt}: {text}"
            )
            out.print(line, markup=False, highlight=False, soft_wrap=True)
        if len(found[path]) > WORST:
            out.print(f"{printable(path)}: {len(found[path]) - WORST:,} more; --json FILE has all", markup=False)


def _figures(path: str, suite: list[Asked], index: Index, found: list[Overlap]) -> dict[str, Any]:
    return {
        "file": path,
        "rows": len(suite),
        "short": index.short,
        "overlapping": len(found),
        "share": len(found) / len(suite),
        "overlaps": [{"where": suite[row.row].where, **asdict(row), "share": row.share} for row in found],
    }
