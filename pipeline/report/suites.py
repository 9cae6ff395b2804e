"""Results of suites and of the recipe's authors in one table: a column for each policy, a row for each figure.

Read from the run's folder: what `sparring judge` and `sparring contamination` wrote beside the answers
(pipeline/suites/results.py), and what the configuration says was published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.pipeline.config import config_of
from sparring.pipeline.report import recipe
from sparring.pipeline.report.published import NAMES, best_of, published_of
from sparring.pipeline.schema import PublishedConfig
from sparring.pipeline.store.manifest import Manifest
from sparring.pipeline.suites.results import Found, Overlap, Result, read
from sparring.stages.plain import printable

ANSWERS = "answers"
"""Folder of a run that holds its answers to suites."""
Cells = dict[int | None, str]
"""Iteration (0: the base, None: not stated) -> figure."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All that suites say of a run. Text of files, to be escaped where it is shown."""

    title: str
    rows: Mapping[str, Cells]
    notes: Sequence[str]
    overlaps: Sequence[Overlap]

    @property
    def columns(self) -> list[int | None]:
        """The policies that any row has, the base first."""
        return sorted({t for cells in self.rows.values() for t in cells}, key=lambda t: (t is None, t or 0))

    def __bool__(self) -> bool:
        return bool(self.rows or self.notes or self.overlaps)


def grid(
    folder: Path, done: Mapping[int, Mapping[str, Manifest]], heldout: Mapping[str, Mapping[int, str | None]]
) -> Grid:
    """Return what the run in `folder` has; heldout: name -> iteration -> its own win rate, shown beside published ones.

    done: iteration -> label -> manifest.
    """
    published, found = published_of(config_of(folder)), read(folder / ANSWERS)
    rows: dict[str, Cells] = dict(_published(published)) if published else {}
    notes = list(found.problems)
    for name, t, text in _results(found, done, notes):
        rows.setdefault(name, {})[t] = text
    if published:
        ours = {f"ours, held-out win rate, {name}": cells for name, cells in heldout.items()}
        rows |= {name: {t: text for t, text in cells.items() if text} for name, cells in ours.items()}
        changed = recipe.differences(folder)
        notes += [f"This run differs from the recipe in: {', '.join(changed)}"] if changed else []
        notes += [published.note] if published.note else []
        notes.append("Held-out win rates are another evaluation: its numbers and published ones are not to be compared")
    title = "suites" + (f"; published ({published.source}): {published.benchmark}" if published else "")
    return Grid(
        title=title, rows={name: cells for name, cells in rows.items() if cells}, notes=notes, overlaps=found.overlaps
    )


def _published(published: PublishedConfig) -> Iterator[tuple[str, Cells]]:
    for n in sorted({row.best_of for row in published.rows}):
        there = {row.iteration: row for row in published.rows if row.best_of == n}
        named = "published" if n == 1 else f"published{best_of(n)}:"
        yield f"{named} LC win rate, %", {t: f"{row.lc:.2f}" for t, row in there.items()}
        yield f"{named} win rate, %", {t: f"{row.wr:.2f}" for t, row in there.items()}
        yield f"{named} mean length", {t: str(row.length) for t, row in there.items() if row.length is not None}


def _results(
    found: Found, done: Mapping[int, Mapping[str, Manifest]], notes: list[str]
) -> Iterator[tuple[str, int, str]]:
    """Yield (row, iteration, figure) of the run's policies as they are now; what is left out goes into `notes`."""
    for result in found.results:
        whose, named = result.about, f"{result.suite} by {result.judge}"
        reason = _left_out(result, done)
        if reason:
            notes.append(f"{named}: the figures of {result.model} are left out, {reason}")
            continue
        best = best_of(whose.best_of)
        for name, score in result.scores.items():
            yield f"{named}{best}: {name}", whose.iteration, score.text
        notes += [f"{named}, {_policy(whose.iteration)}{best}: {line}" for line in result.notes]


def _left_out(result: Result, done: Mapping[int, Mapping[str, Manifest]]) -> str:
    whose = result.about
    if whose.iteration == 0:
        return ""
    train = done.get(whose.iteration, {}).get("train")
    if train is None:
        return f"the run has no policy of iteration {whose.iteration}"
    again = "answer and judge again"
    return "" if train.content == whose.policy else f"iteration {whose.iteration} has another policy now: {again}"


def _policy(t: int) -> str:
    return NAMES.get(t, f"iteration {t}")


def said_of(overlap: Overlap) -> str:
    """Return `alpaca_eval: 3 of 805 rows (0.4%) have 13 words in a row in common with …`."""
    share = overlap.overlapping / overlap.rows if overlap.rows else 0.0
    return (
        f"{overlap.suite}: {overlap.overlapping:,} of {overlap.rows:,} rows ({share:.1%}) have {overlap.n} words in a "
        f"row in common with the {overlap.prompts:,} training prompts {overlap.of}"
    )


def print_suites(found: Grid, console: Console) -> None:
    """Print the table, its notes, and what the training prompts share with suites."""
    if found.rows:
        table = Table("", title=Text(printable(found.title), style="table.title"), title_justify="left")
        for t in found.columns:
            table.add_column(NAMES.get(t, str(t)), justify="right")
        for name, cells in found.rows.items():
            table.add_row(Text(printable(name)), *(cells.get(t, "") for t in found.columns))
        console.print(table)
    for line in [*found.notes, *(f"contamination: {said_of(one)}" for one in found.overlaps)]:
        console.print(printable(line), markup=False, highlight=False)
