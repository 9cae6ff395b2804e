"""What is printed of a report: the answer, the tables, the notes, and what the judges are worth."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.pipeline.report.comparison import EXPLANATION, HEADS, TITLE, Comparison, remarks, rows
from sparring.pipeline.report.cost import cost_of
from sparring.pipeline.report.crossplay import Game, cell, pi, sentences
from sparring.pipeline.report.data import ArmReport
from sparring.pipeline.report.judging import JUDGES
from sparring.pipeline.report.suites import NAMES, SuiteTable, overlap_text
from sparring.stages.plain import printable


def stdout_console() -> Console:
    """Return what tables are printed to: as wide as COLUMNS or the terminal, 160 where it is a pipe or a file."""
    columns = os.environ.get("COLUMNS", "")
    wide = int(columns) if columns.isdecimal() else 0
    return Console(width=wide or (shutil.get_terminal_size().columns if sys.stdout.isatty() else 160))


def print_report(arm: ArmReport, console: Console, panel: bool = False) -> None:
    """Print the report of an arm; panel: with the collapse panel."""
    console.print(f"{arm.answer.headline}.", style="bold", markup=False, highlight=False)
    _print_lines(arm.answer.sentences, console)
    named = Text(f"run {printable(arm.history.folder.name)}", style="table.title")
    table = Table("iteration", title=named, title_justify="left")
    for t in arm.figures:
        table.add_column(str(t), justify="right")
    for row in arm.rows():
        table.add_row(row.title, *row.cells)
    console.print(table)
    if panel:
        print_panel(arm, console)
        print_minutes(arm, console)
    _print_lines([f"iteration {t}: {line}" for t, lines in arm.remarks().items() for line in lines], console)
    print_games(arm.games, console)
    _print_lines([*arm.judges, *([arm.timeline.sentence] if arm.timeline else [])], console)
    print_suites(arm.suites, console)


def print_panel(arm: ArmReport, console: Console) -> None:
    """Print the collapse panel as a table with a section for each group; nothing without a figure."""
    groups = arm.panel_groups()
    table = Table("collapse panel", "")
    for t in arm.panel:
        table.add_column(str(t), justify="right")
    for group, group_rows in groups:
        table.add_row("", group, style="bold")
        for row in group_rows:
            table.add_row(row.name, row.title, *row.cells)
        table.add_section()
    if groups:
        console.print(table)


def print_minutes(arm: ArmReport, console: Console) -> None:
    """Print what each step was planned to take beside what it took; nothing where the run made no step."""
    cost = cost_of(arm.history)
    table = Table("minutes", "planned", "spent")
    for row in cost.minutes() if cost else ():
        table.add_row(*row)
    if table.rows:
        console.print(table)


def print_games(games: Mapping[str, Game], console: Console) -> None:
    """Print who beats whom by each judge, and what kind of game that is."""
    for judge, game in games.items():
        _print_lines([f"cross-play, {JUDGES[judge]}: P(row beats column); ~ where the interval contains 1/2"], console)
        n, table = len(game["win_rates"]), Table("")
        for j in range(n):
            table.add_column(pi(j), justify="right")
        for i in range(n):
            table.add_row(pi(i), *(cell(game, i, j) for j in range(n)))
        console.print(table)
        _print_lines(sentences(game), console)


def print_suites(suites: SuiteTable, console: Console) -> None:
    """Print the table, its notes, and what the training prompts share with suites."""
    if suites.rows:
        table = Table("", title=Text(printable(suites.title), style="table.title"), title_justify="left")
        for t in suites.columns:
            table.add_column(NAMES.get(t, str(t)), justify="right")
        for name, cells in suites.rows.items():
            table.add_row(Text(printable(name)), *(cells.get(t, "") for t in suites.columns))
        console.print(table)
    shared = [f"contamination: {overlap_text(one)}" for one in suites.overlaps]
    _print_lines([*suites.notes, *shared], console)


def print_comparisons(comparisons: Sequence[Comparison], console: Console) -> None:
    """Print the comparison of the arms with the first one; nothing for a single arm."""
    compared = rows(comparisons)
    if compared:
        heading = Text(printable(TITLE.format(comparisons[0].baseline)), style="table.title")
        table = Table(title=heading, title_justify="left", show_lines=True)
        for head in HEADS:
            table.add_column(head, overflow="fold", no_wrap=head != HEADS[0])
        for row in compared:
            table.add_row(*(Text(printable(text)) for text in row))
        console.print(table)
        _print_lines([EXPLANATION.format(comparisons[0].baseline)], console)
    _print_lines(remarks(comparisons), console)


def _print_lines(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(printable(line), markup=False, highlight=False)
