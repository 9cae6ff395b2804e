"""`sparring contamination`: which rows of suites share an n-gram with the prompts that a run has trained on.

    sparring contamination myrun                                      # with every suite that can be had
    sparring contamination myrun alpaca_eval mt_bench/question.jsonl --n 8 --json overlap.json

What it finds stands in `sparring report` from then on.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.table import Table
from rich.text import Text

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Column, Run, Runs
from sparring.pipeline.report.terminal import stdout_console
from sparring.pipeline.runs import run_history
from sparring.pipeline.store.files import check_target, write_target
from sparring.pipeline.suites import results
from sparring.pipeline.suites.contamination import Compared, compare, read_suites, training_prompts
from sparring.stages.errors import ConfigError
from sparring.stages.plain import printable

WORST = 5
"""Rows of a suite that are shown."""
SHOWN = 60
"""Characters of a row there."""


def contamination(
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
    which, artifacts = training_prompts(history)
    suites, absent = read_suites(files, column)
    compared, prompts = compare(suites, artifacts, n)
    show(f"{n}-grams of {prompts:,} training prompts ({which})", n, compared)
    for line in absent:
        print(printable(f"left out: {line}"))
    kept = [
        results.Overlap(
            suite=one.name, n=n, rows=len(one.rows), overlapping=len(one.overlaps), prompts=prompts, of=which
        )
        for one in compared
    ]
    print(f"{results.write_overlaps(history.folder / 'answers', kept)}: what `sparring report` shows of it")
    if to:
        figures = [
            {
                "file": one.name,
                "rows": len(one.rows),
                "short": one.short,
                "overlapping": len(one.overlaps),
                "share": len(one.overlaps) / len(one.rows),
                "overlaps": [
                    {"where": one.rows[row.row].where, **asdict(row), "share": row.share} for row in one.overlaps
                ],
            }
            for one in compared
        ]
        facts = {"run": run, "prompts": prompts, "of": which, "n": n, "suites": figures}
        write_target(to, json.dumps(facts, indent=2) + "\n")


def show(title: str, n: int, compared: list[Compared]) -> None:
    """Print a line for each suite, then its worst rows."""
    out = stdout_console()
    table = Table(title=title, title_justify="left")
    table.add_column("suite", overflow="fold")
    for name in ("rows", f"under {n} words", "overlapping", "share"):
        table.add_column(name, justify="right")
    for one in compared:
        count = len(one.overlaps)
        cells = (f"{len(one.rows):,}", f"{one.short:,}", f"{count:,}", f"{count / len(one.rows):.1%}")
        table.add_row(Text(printable(one.name)), *cells)
    out.print(table)
    for one in compared:
        name = printable(one.name)
        for overlap in one.overlaps[:WORST]:
            row = one.rows[overlap.row]
            text = " ".join(printable(" ".join(row.turns)).split())[:SHOWN]
            line = f"{name}: {row.where}: {overlap.shared} of {overlap.grams} as prompt {overlap.prompt}: {text}"
            out.print(line, markup=False, highlight=False, soft_wrap=True)
        if len(one.overlaps) > WORST:
            out.print(f"{name}: {len(one.overlaps) - WORST:,} more; --json FILE has all", markup=False)
