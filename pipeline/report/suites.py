"""Results of suites and of the recipe's authors in one table: a column for each policy, a row for each figure.

Read from the run's folder: what `sparring judge` and `sparring contamination` wrote beside the answers
(pipeline/suites/results.py), and what the configuration says was published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from sparring.pipeline.report import recipe
from sparring.pipeline.report.config import PublishedConfig
from sparring.pipeline.report.figures import Figures
from sparring.pipeline.report.judging import JUDGES, win_rate_name
from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.suites.results import Overlap, Result, read

ANSWERS = "answers"
"""Folder of a run that holds its answers to suites."""
NAMES = {0: "base", None: "iteration not stated"}
HELD_OUT = tuple(f"{best}{win_rate_name(judge, 'base')}" for best in ("", "best of n, ") for judge in JUDGES)
"""Figures that stand beside published ones."""
Cells = dict[int | None, str]
"""Iteration (0: the base, None: not stated) -> figure."""


@dataclass(frozen=True, kw_only=True)
class SuiteTable:
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


def suite_table(history: RunHistory, figures: Mapping[int, Figures]) -> SuiteTable:
    """Return what suites say of a run, beside what was published for its recipe and its own held-out win rates."""
    published, kept = published_of(history.settings), read(history.folder / ANSWERS)
    rows: dict[str, Cells] = {}
    notes = list(kept.problems)
    for n in sorted({row.best_of for row in published.rows}) if published else ():
        assert published is not None
        named = "published" if n == 1 else f"published{best_of(n)}:"
        of_n = [row for row in published.rows if row.best_of == n]
        rows[f"{named} LC win rate, %"] = {row.iteration: f"{row.lc:.2f}" for row in of_n}
        rows[f"{named} win rate, %"] = {row.iteration: f"{row.wr:.2f}" for row in of_n}
        rows[f"{named} mean length"] = {row.iteration: str(row.length) for row in of_n if row.length is not None}
    for result in kept.results:
        named, best, t = f"{result.suite} by {result.judge}", best_of(result.about.best_of), result.about.iteration
        if why := _left_out(result, history):
            notes.append(f"{named}: the figures of {result.model} are left out, {why}")
            continue
        for name, score in result.scores.items():
            rows.setdefault(f"{named}{best}: {name}", {})[t] = score.text
        notes += [f"{named}, {NAMES.get(t, f'iteration {t}')}{best}: {line}" for line in result.notes]
    if published:
        for name in HELD_OUT:
            cells: Cells = {t: one[name].text for t, one in figures.items() if name in one}
            rows[f"ours, held-out win rate, {name}"] = cells
        changed = recipe.differences(history)
        notes += [f"This run differs from the recipe in: {', '.join(changed)}"] if changed else []
        notes += [published.note] if published.note else []
        notes.append("Held-out win rates are another evaluation: its numbers and published ones are not to be compared")
    title = "suites" + (f"; published ({published.source}): {published.benchmark}" if published else "")
    shown = {name: cells for name, cells in rows.items() if cells}
    return SuiteTable(title=title, rows=shown, notes=notes, overlaps=kept.overlaps)


def _left_out(result: Result, history: RunHistory) -> str:
    """Return why a result is not of a policy that the run has now, '' where it is."""
    t = result.about.iteration
    if t == 0:
        return ""
    train = history.manifest(t, "train")
    if train is None:
        return f"the run has no policy of iteration {t}"
    again = "answer and judge again"
    return "" if train.content == result.about.policy else f"iteration {t} has another policy now: {again}"


def overlap_text(overlap: Overlap) -> str:
    """Return `alpaca_eval: 3 of 805 rows (0.4%) have 13 words in a row in common with …`."""
    share = overlap.overlapping / overlap.rows if overlap.rows else 0.0
    return (
        f"{overlap.suite}: {overlap.overlapping:,} of {overlap.rows:,} rows ({share:.1%}) have {overlap.n} words in a "
        f"row in common with the {overlap.prompts:,} training prompts {overlap.of}"
    )


def published_of(config: Mapping[str, Any]) -> PublishedConfig | None:
    """Return the published results that a run's configuration has, None without."""
    block = config.get("published")
    return TypeAdapter(PublishedConfig).validate_python(block) if block else None


def published_rows(published: PublishedConfig) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, LC win rate, win rate and length of each published row."""
    for row in published.rows:
        name = NAMES.get(row.iteration, f"iteration {row.iteration}") + best_of(row.best_of)
        yield name, f"{row.lc:.2f}", f"{row.wr:.2f}", "" if row.length is None else str(row.length)


def best_of(n: int) -> str:
    """Return `, best of 16`, nothing where a policy's own responses count."""
    return f", best of {n}" if n > 1 else ""
