"""All that a report says of runs: every figure and sentence, computed once. Terminal, page, JSON, model card, trackers
and studies show it and decide nothing.

`ReportData.of` reads manifests, records of training and log-probs, and for several arms their held-out scores. What the
page alone shows is in details.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparring.pipeline.report import crossplay
from sparring.pipeline.report.answer import Answer, answer
from sparring.pipeline.report.comparison import Comparison, compare
from sparring.pipeline.report.figures import (
    FIGURES,
    Figure,
    FigureRow,
    Figures,
    iteration_figures,
    notes,
    pairs_of,
    panel_figures,
    panel_groups,
)
from sparring.pipeline.report.judging import JUDGES, win_rate_name, worth_of_judges
from sparring.pipeline.report.suites import SuiteTable, suite_table
from sparring.pipeline.runs.rules import RuleWarning
from sparring.pipeline.runs.run_history import RunHistory, Steps, labels
from sparring.pipeline.runs.timeline import Timeline, timeline_of


@dataclass(frozen=True, kw_only=True)
class ArmReport:
    """A run, or an arm of one. Keys of mappings are iterations, from 1 on."""

    history: RunHistory
    label: str
    """Its name beside the other arms of the report."""
    answer: Answer
    figures: Mapping[int, Figures]
    """The figures of the table."""
    panel: Mapping[int, Figures]
    """The figures of the collapse panel."""
    notes: Mapping[int, Sequence[str]]
    """What a person should know beside the figures: what was imported, dropped or dealt again."""
    warnings: Sequence[RuleWarning]
    """The rules of `diagnostics` that fire."""
    judges: Sequence[str]
    """What the judges are worth, at the last iteration that is evaluated."""
    games: Mapping[str, crossplay.Game]
    """judge -> intervals, cycle, exploitability and equilibrium, where all policies have met."""
    suites: SuiteTable
    timeline: Timeline | None
    """When its steps were made, None where its events do not say."""

    @staticmethod
    def of(history: RunHistory, label: str = "") -> ArmReport:
        """Return the report of an arm."""
        iterations, panels = history.iterations, history.panels
        by_iteration = {panel.iteration: panel for panel in panels}
        figures = {t: iteration_figures(t, steps, by_iteration.get(t)) for t, steps in iterations.items()}
        scored = [steps for steps in iterations.values() if any(f"score_{judge}_base" in steps for judge in JUDGES)]
        judged = [steps for steps in scored if "evaluate" in steps] or scored
        return ArmReport(
            history=history,
            label=label or history.name,
            answer=answer(iterations, figures),
            figures=figures,
            panel={panel.iteration: panel_figures(panel) for panel in panels},
            notes={t: [*notes(steps), *dropped_notes(history, t, steps)] for t, steps in iterations.items()},
            warnings=history.warnings,
            judges=worth_of_judges(judged[-1]) if judged else [],
            games=crossplay.games(iterations),
            suites=suite_table(history, figures),
            timeline=timeline_of(history),
        )

    def win_rate(self, t: int, judge: str) -> Figure | None:
        """Return the win rate of iteration t against the base, None where the judge has not judged it."""
        return self.figures.get(t, {}).get(win_rate_name(judge, "base"))

    def rows(self) -> list[FigureRow]:
        """Return the table's rows, of the figures that some iteration has."""
        counted, rows = pairs_of(self.history.panels), []
        for name in (source.name for source in FIGURES):
            cells = [one[name].text if name in one else "" for one in self.figures.values()]
            if any(name in one for one in self.figures.values()):
                rows.append(FigureRow(name=name, title=name.replace("{pairs}", counted), cells=cells))
        return rows

    def panel_groups(self) -> list[tuple[str, list[FigureRow]]]:
        """Return the panel's groups with their rows, a cell for each iteration."""
        return panel_groups(self.panel, self.history.panels)

    def remarks(self) -> dict[int, list[str]]:
        """Return iteration -> its notes and the rules that fire in it."""
        fired = {t: [f"WARNING {one}" for one in self.warnings if one.iteration == t] for t in self.notes}
        return {t: [*lines, *fired[t]] for t, lines in self.notes.items()}


def dropped_notes(history: RunHistory, t: int, steps: Steps) -> list[str]:
    """Return a line for each step of iteration t whose files were dropped to free disk."""
    reasons = {label: history.dropped(t, label) for label in steps}
    return [f"the files of {label} were dropped ({why})" for label, why in reasons.items() if why]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The arms of a report, and their comparison with the first one."""

    arms: Sequence[ArmReport]
    comparisons: Sequence[Comparison] = ()

    @staticmethod
    def of(histories: Sequence[RunHistory]) -> ReportData:
        """Return all that is said of these arms."""
        named = zip(histories, labels(histories), strict=True)
        arms = [ArmReport.of(history, label) for history, label in named]
        return ReportData(arms=arms, comparisons=compare(histories))
