"""A run in the terminal: the answer in words, the table, what must be said of it, and what the judges are worth."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.pipeline.report.answer import answer
from sparring.pipeline.report.crossplay import print_crossplay
from sparring.pipeline.report.judging import worth_of_judges
from sparring.pipeline.report.panel import print_panel
from sparring.pipeline.report.suites import print_suites
from sparring.pipeline.report.table import rows_of, said, suites_of
from sparring.pipeline.run_history import RunHistory
from sparring.stages.plain import printable


def print_report(history: RunHistory, console: Console, whole: bool = False) -> None:
    """Print the answer, the table of a run, then what the judges are worth; whole: with the collapse panel."""
    done, seen = history.done, history.panels
    told = answer(done)
    console.print(f"{told.headline}.", style="bold", markup=False, highlight=False)
    for sentence in told.sentences:
        console.print(sentence, markup=False, highlight=False)
    table = Table(title=Text(f"run {printable(history.folder.name)}", style="table.title"), title_justify="left")
    table.add_column("iteration")
    for t in done:
        table.add_column(str(t), justify="right")
    for name, cells in rows_of(done, seen):
        table.add_row(name, *cells)
    console.print(table)
    if whole:
        print_panel(seen, console)
    for t, lines in said(history).items():
        for line in lines:
            console.print(f"iteration {t}: {printable(line)}", markup=False, highlight=False)
    print_crossplay(done, console)
    for line in worth_of_judges(next(reversed(done.values()), {})):
        console.print(line, markup=False, highlight=False)
    print_suites(suites_of(history), console)
