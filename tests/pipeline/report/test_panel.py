"""The collapse panel reaches the terminal, the page and the JSON: every figure, in words, under its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from sparring.pipeline.cli import main
from sparring.pipeline.report.as_json import as_json
from sparring.pipeline.report.data import ArmReport, ReportData
from sparring.pipeline.report.figures import FigureRow, panel_figures, panel_groups
from sparring.pipeline.report.terminal import print_panel, print_report
from sparring.pipeline.runs.panel import SOURCES, Measurement, Panel
from sparring.pipeline.runs.run_history import RunHistory, open_arms
from sparring.stages.train.steps.logprobs import SCHEMA
from tests.pipeline.report.fabricated import Run, page_of, section

COMPARED = [f"{judge}_{opponent}" for judge in ("oracle", "second") for opponent in ("previous", "base")]
NAMES = [name for name, source in SOURCES.items() if source.step]
ESTIMATED = ["kl_previous", "kl_base", *COMPARED]
"""With an interval."""
NAMES += ["distance_new", "r_star", *ESTIMATED]
TEMPERED = {"log_ratio_previous", "log_ratio_base"}


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> RunHistory:
    """Two iterations with every figure there is, no two of which are alike."""
    run = Run(tmp_path_factory.mktemp("panel")).begin()
    run.measured([1, 2])
    (found,) = open_arms(run.root / "runs", ["mine"])
    return found


class Rows(HTMLParser):
    """The cells of each table row, by the name in its `code`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in ("tr", "h3"):
            self.rows.append([])
        elif tag in ("td", "th", "code"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def grouped(panels: Sequence[Panel]) -> list[tuple[str, list[FigureRow]]]:
    """The groups of these panels."""
    return panel_groups({one.iteration: panel_figures(one) for one in panels}, panels)


def test_every_figure_reaches_the_terminal_the_page_and_the_json(arm: RunHistory, tmp_path: Path) -> None:
    first, second = arm.panels
    assert set(first.figures) == {*NAMES, *(f"{name}{end}" for name in ESTIMATED for end in ("_low", "_high"))}
    now = [one.value for one in first.figures.values()]
    later = [one.value for name, one in second.figures.items() if not name.startswith("base_")]
    assert len({*now, *later}) == len(now) + len(later)
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    print_panel(ArmReport.of(arm), console)
    printed = [[part.strip() for part in line.split("│")[1:-1]] for line in console.export_text().splitlines()]
    terminal = {row[0]: row[2:] for row in printed if len(row) == 4}
    page = {row[1]: row[2:] for row in Rows(section(page_of([arm]), "Collapse panel")).rows if len(row) == 4}
    figures = ArmReport.of(arm).panel
    (written,) = json.loads(as_json(ReportData.of([arm])))["arms"]
    for name in NAMES:
        cells = [figures[1][name].text, figures[2][name].text]
        assert all(cells) and terminal[name] == cells and [text.replace("\n", " ") for text in page[name]] == cells
    for one in arm.panels:
        found = written["panel"][str(one.iteration)]
        assert {name: entry["value"] for name, entry in found.items()} == {n: one.get(n) for n in one.figures}
    assert written["panel"]["2"]["h_w"] == {
        "value": second.get("h_w"),
        "unit": "nats",
        "words": "h of chosen: change of z, late",
        "step": "train",
        "key": "metrics.jsonl: h_w, second half of the steps",
    }


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_has_an_interval_and_another_name_where_sampling_is_tempered(tmp_path: Path, temperature: float) -> None:
    run = Run(tmp_path).begin()
    run.add(1, "sample_heldout", identity={"sampler": {"temperature": temperature, "top_p": 1.0, "min_p": 0.0}})
    for whose, values in (("own", (-1.0, -2.0)), ("base", (-1.5, -1.5))):
        rows = [{"id": f"h{i}", "response": 0, "logprob": value, "tokens": 1} for i, value in enumerate(values)]
        run.add(1, f"logprobs_{whose}", [pa.Table.from_pylist(rows, schema=SCHEMA)], summary={"mean_logprob": 0.0})
    (found,) = open_arms(run.root / "runs", ["mine"])
    name = "KL to the base, nats" if temperature == 1 else "log-ratio to the base under the sampling, nats"
    shown = {row.title: row.cells for row in ArmReport.of(found).rows() if not row.title.startswith("seconds")}
    assert shown == {name: ["0.000 [-0.500, 0.500]"]}
    (written,) = json.loads(as_json(ReportData.of([found])))["arms"]
    assert written["iterations"]["1"][name] == {"value": 0.0, "low": -0.5, "high": 0.5}
    assert {one for one in found.panels[0].figures if not one.endswith(("_low", "_high"))} == {
        "kl_base" if temperature == 1 else "log_ratio_base"
    }


def test_every_figure_has_words_and_no_words_are_left_over() -> None:
    assert {*NAMES, *TEMPERED} == set(SOURCES)


def test_what_was_not_measured_on_all_is_said_in_the_words(arm: RunHistory) -> None:
    report = ArmReport.of(arm)
    words = {row.name: row.title for _, rows in report.panel_groups() for row in rows}
    counts = "{:.0f}, {:.0f} pairs".format(*(one.get("probe_pairs") for one in arm.panels))
    assert words["probe_h_w"] == f"h of chosen after training ({counts})" and "8 pairs" in words["noise"]
    assert "measured on the output head" in words["in_band"] and "may be negative" in words["kl_base"]
    assert counts == "61, 62 pairs" and f"h chosen after training ({counts})" in {row.title for row in report.rows()}
    older = Panel(iteration=1, figures={name: arm.panels[0].figures[name] for name in ("probe_h_w", "noise")})
    assert "8 shortest" in next(row.title for _, rows in grouped([older]) for row in rows)


def test_a_win_rate_stands_with_its_interval(arm: RunHistory) -> None:
    (_, rows), *_ = [one for one in ArmReport.of(arm).panel_groups() if one[0] == "held-out win rates"]
    assert [row.name for row in rows] == ["oracle_previous", "oracle_base", "second_previous", "second_base"]
    now = arm.panels[0]
    assert rows[1].title == "oracle, against the base"
    assert rows[1].cells[0] == f"{now.get('oracle_base'):.3f} [{now.get('oracle_base_low'):.3f}, " + (
        f"{now.get('oracle_base_high'):.3f}]"
    )


def test_what_an_iteration_lacks_is_empty_and_what_has_no_words_stands_under_its_name() -> None:
    one = Measurement(name="ties", value=0.25, unit="share", step="score", key="tie_rate")
    new = Measurement(name="brand_new_low", value=2.0, unit="ratio", step="train", key="x")
    found = dict(
        grouped([Panel(iteration=1, figures={"ties": one}), Panel(iteration=2, figures={"brand_new_low": new})])
    )
    assert list(found) == ["judgement", "others"]
    assert found["judgement"][0].cells == ["25.0%", ""]
    assert (found["others"][0].name, found["others"][0].cells) == ("brand_new_low", ["", "2.000"])
    assert grouped([]) == grouped([Panel(iteration=1, figures={})]) == []


def test_report_prints_it_and_run_does_not(
    arm: RunHistory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert RunHistory.at(arm.folder).panels == arm.panels
    assert main(["report", "mine", "--runs", str(arm.folder.parent)]) == 0
    assert "collapse panel" in capsys.readouterr().out
    print_report(ArmReport.of(arm), Console())
    printed = capsys.readouterr().out
    assert "collapse panel" not in printed
    told = ArmReport.of(arm).answer
    assert printed.startswith(f"{told.headline}.\n{told.sentences[0]}") and told.iteration > 0
