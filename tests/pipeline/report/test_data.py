"""One set of figures: what the JSON has is what the terminal, the page, the card and the trackers show."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparring.pipeline.export.card import COMPARED
from sparring.pipeline.report import trackers
from sparring.pipeline.report.as_json import as_json
from sparring.pipeline.report.data import ArmReport, ReportData
from sparring.pipeline.report.figures import FIGURES
from sparring.pipeline.report.terminal import print_report
from sparring.pipeline.runs.run_history import RunHistory, open_arms
from sparring.stages.plain import printable
from tests.pipeline.report.fabricated import Run, page_of, section
from tests.pipeline.report.planted import NAME, planted


@pytest.fixture(scope="module", params=["every measurement", "win rates and prompts"])
def arm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunHistory:
    root = tmp_path_factory.mktemp("data")
    if request.param == "every measurement":
        run = Run(root).begin()
        run.measured([1, 2])
        (found,) = open_arms(root / "runs", ["mine"])
    else:
        planted(root)
        (found,) = open_arms(root / "runs", [NAME])
    return found


def printed(arm: ArmReport, folder: Path) -> tuple[str, dict[str, list[str]]]:
    """What the terminal shows, and the rows of its first table: name -> cells, with their lines."""
    console = Console(width=220, record=True, file=(folder / "out").open("w"))
    print_report(arm, console, panel=True)
    text = console.export_text()
    rows: dict[str, list[str]] = {}
    name = ""
    for line in text[: text.index("collapse panel")].splitlines():
        first, *cells = [part.strip() for part in line.split("│")[1:-1]] or [""]
        if first:
            name = first
            rows[name] = cells
        elif cells and name:
            rows[name] = [f"{above}\n{below}".rstrip() for above, below in zip(rows[name], cells, strict=True)]
    return text, rows


class Cells(HTMLParser):
    """The rows of a page's tables: the text of the first cell -> that of the others."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_every_figure_of_the_json_is_in_the_terminal_and_on_the_page(arm: RunHistory, tmp_path: Path) -> None:
    report = ReportData.of([arm])
    (one,) = report.arms
    (content,) = json.loads(as_json(report))["arms"]
    text, terminal = printed(one, tmp_path)
    page = {row[0]: row[1:] for row in Cells(section(page_of([arm]), "All figures")).rows}
    titles = {row.name: row.title for row in one.rows()}
    names = {name for values in content["iterations"].values() for name in values}
    assert names == set(titles) and len(names) > 20
    for place, (t, figures) in enumerate(one.figures.items()):
        values: dict[str, Any] = content["iterations"][str(t)]
        assert list(values) == list(figures)
        for name, figure in figures.items():
            assert values[name] == figure.value and figure.unit and figure.meaning
            assert terminal[titles[name]][place] == page[titles[name]][place] == figure.text
    assert content["panel"]
    for one_panel in content["panel"].values():
        assert all(entry["words"] or name.endswith(("_low", "_high")) for name, entry in one_panel.items())
    unwrapped = re.sub(r"\s", "", text)
    for line in [content["answer"]["headline"], *content["answer"]["sentences"], *content["judges"]]:
        assert re.sub(r"\s", "", printable(line)) in unwrapped


def test_a_win_rate_has_its_interval_and_says_it(arm: RunHistory) -> None:
    report = ArmReport.of(arm)
    for t in report.figures:
        for name in COMPARED:
            figure = report.figures[t][name]
            assert (figure.low, figure.high) == (figure.value["low"], figure.value["high"])
            assert figure.interval in figure.sentence and f"iteration {t}" in figure.sentence
            assert figure.step == "evaluate" and figure.verdict in ("better", "worse", "open")


def test_trackers_are_given_the_same_numbers(arm: RunHistory) -> None:
    report = ArmReport.of(arm)
    rows = {row.x: row.values for row in trackers.metrics_of(arm) if row.axis == trackers.ITERATION}
    for t, figures in report.figures.items():
        for judge, named in (("oracle", "oracle"), ("second", "second judge")):
            value = figures[f"{named}: vs base"].value
            ends = {key: rows[t][f"evaluate/{judge}_vs_base/{key}"] for key in ("win_rate", "low", "high")}
            assert ends == {key: value[key] for key in ends}
        assert report.panel[t]
        assert all(
            rows[t][f"panel/{trackers.tracked_name(name)}"] == one.value for name, one in report.panel[t].items()
        )


def test_names_of_figures_are_of_one_figure_each() -> None:
    names = [source.name for source in FIGURES]
    assert len(names) == len(set(names)) and set(COMPARED) <= set(names)
