"""What suites found of a run, in the terminal, in the JSON and on the page: whose it is, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparring.pipeline.report.as_json import as_json
from sparring.pipeline.report.data import ArmReport, ReportData
from sparring.pipeline.report.terminal import print_suites
from sparring.pipeline.runs.run_history import open_arms, open_run
from sparring.pipeline.suites import results
from sparring.pipeline.suites.results import About, Overlap, Result, Score
from tests.pipeline.report.fabricated import Run, page_of
from tests.pipeline.report.planted import TEXTS, planted


def result(t: int, policy: str | None, value: float, **more: Any) -> Result:
    about = About(iteration=t, policy=policy, best_of=more.pop("best_of", 1))
    given: dict[str, Any] = {"suite": "AlpacaEval 2.0", "judge": "an annotator", "model": f"mine-iter-{t}"}
    scores = {"LC win rate, %": Score(value=value, error=0.5), "win rate, %": Score(value=value - 1)}
    return Result(**{**given, "scores": scores, **more}, about=about)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two iterations; the base, both policies, one of long ago and one that is gone were judged."""
    made = Run(tmp_path).begin()
    for t in (1, 2):
        made.trained(t)
        made.evaluated(t, 0.56, 0.52)
    content = {t: found["train"].content for t, found in open_arms(tmp_path / "runs", ["mine"])[0].steps.items()}
    judged = [
        result(0, None, 17.0),
        result(1, content[1], 24.5),
        result(2, content[2], 26.25, notes=["5 of the outputs are empty"]),
        result(2, content[2], 31.0, best_of=16),
        result(2, "long ago", 99.0, judge="once"),
        result(7, "gone", 98.0, judge="never"),
    ]
    for number, one in enumerate(judged):
        results.write(made.folder / "answers", f"answers-{number}", one)
    first = Overlap(suite="alpaca_eval", n=13, rows=805, overlapping=4, prompts=64, of="sampled in iteration 1")
    results.write_overlaps(made.folder / "answers", [first])
    now = Overlap(suite="alpaca_eval", n=13, rows=805, overlapping=8, prompts=128, of="sampled in iterations 1, 2")
    results.write_overlaps(made.folder / "answers", [now])
    return made


def printed(run: Run) -> list[str]:
    console = Console(record=True, width=200)
    print_suites(ArmReport.of(open_run(run.root / "runs", run.name)).suites, console)
    return console.export_text().splitlines()


def cells(lines: list[str]) -> dict[str, list[str]]:
    split = ([cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line)
    return {name: found for name, *found in split}


def test_a_column_for_each_policy(run: Run) -> None:
    lines = printed(run)
    by, found = "AlpacaEval 2.0 by an annotator", cells(lines)
    assert found[f"{by}: LC win rate, %"] == ["17.00 ± 0.50", "24.50 ± 0.50", "26.25 ± 0.50"]
    assert found[f"{by}: win rate, %"] == ["16.00", "23.50", "25.25"]
    assert found[f"{by}, best of 16: LC win rate, %"] == ["", "", "31.00 ± 0.50"]
    assert f"{by}, iteration 2: 5 of the outputs are empty" in lines
    shared = "alpaca_eval: 8 of 805 rows (1.0%) have 13 words in a row in common with the 128 training prompts sampled"
    assert [line for line in lines if line.startswith("contamination: ")] == [
        f"contamination: {shared} in iterations 1, 2"
    ]


def test_figures_of_other_policies_are_left_out_and_said(run: Run) -> None:
    lines = printed(run)
    for reason in (
        "by once: the figures of mine-iter-2 are left out, iteration 2 has another policy now: answer and judge again",
        "by never: the figures of mine-iter-7 are left out, the run has no policy of iteration 7",
    ):
        assert f"AlpacaEval 2.0 {reason}" in lines
    assert not any(value in line for value in ("99.00", "98.00") for line in lines)


def test_a_file_that_is_no_result_is_said(run: Run) -> None:
    (run.folder / "answers" / "bad.x.results.json").write_text('{"suite": 3}')
    (run.folder / "answers" / "contamination.json").write_text("[")
    lines = printed(run)
    assert any("bad.x.results.json: not a result of a suite (" in line for line in lines)
    assert any("contamination.json: cannot be read; run `sparring contamination` again." in line for line in lines)


def test_the_same_as_json_and_on_the_page(run: Run) -> None:
    found = open_arms(run.root / "runs", ["mine"])
    (arm,) = json.loads(as_json(ReportData.of(found)))["arms"]
    row = arm["suites"]["rows"]["AlpacaEval 2.0 by an annotator: LC win rate, %"]
    assert row == {"base": "17.00 ± 0.50", "1": "24.50 ± 0.50", "2": "26.25 ± 0.50"}
    assert arm["contamination"][0]["overlapping"] == 8
    html = page_of(found)
    assert "<h2>Suites</h2>" in html and "24.50 ± 0.50" in html and "128 sampled in iterations 1, 2" in html


def test_names_in_files_are_text(tmp_path: Path) -> None:
    made = planted(tmp_path)
    found = open_arms(tmp_path / "runs", [made.name])
    html, terminal = page_of(found), "\n".join(printed(made))
    assert "\x1b" not in terminal and "\\x1b[31mred" in terminal and "\u202e" not in terminal
    section = html[html.index("<h2>Suites</h2>") :]
    assert "&lt;script&gt;" in section[: section.index("</section>")]
    assert not any(text in html for text in TEXTS)


def test_a_run_without_suites_has_no_such_table(tmp_path: Path) -> None:
    made = Run(tmp_path).begin()
    made.trained(1)
    assert printed(made) == []
    assert "Suites: left out, no suite has judged it yet." in page_of(open_arms(tmp_path / "runs", ["mine"]))
