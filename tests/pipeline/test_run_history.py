"""Runs and arms by the names that users write, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.runs.run_history import RunHistory, labels, open_arms, open_run, recorded
from sparring.stages.errors import DataError
from tests.pipeline.report.fabricated import Run
from tests.pipeline.test_damaged_files import COMMANDS
from tests.refusals import named, refused


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run, two arms of another, and a run that has made nothing."""
    for name in ("a", "b/x=1", "b/x=2"):
        Run(tmp_path, name).begin().add(0, "prompts")
    Run(tmp_path, "empty").begin()
    return tmp_path / "runs"


def test_names_of_arms(runs: Path) -> None:
    assert labels(open_arms(runs, ["b"])) == ["x=1", "x=2"]
    assert labels(open_arms(runs, ["a", "b"])) == ["a", "b/x=1", "b/x=2"]
    assert labels(open_arms(runs, ["b/x=1"])) == ["b/x=1"] and len(open_arms(runs, ["a", "a"])) == 1
    assert open_run(runs, "b/x=1").name == "b/x=1" and [one.name for one in recorded(runs, "b")] == ["b/x=1", "b/x=2"]


def test_a_run_that_is_still_made_is_read_without_checks(runs: Path) -> None:
    found = RunHistory.at(runs / "a")
    assert set(found.steps) == {0} and found.iterations == {} and found.settings == {}
    assert RunHistory.at(runs / "nowhere").steps == {}


def test_a_run_that_has_made_nothing(runs: Path) -> None:
    with refused(DataError, "empty", "status empty"):
        open_arms(runs, ["empty"])


@pytest.mark.parametrize(
    ("name", "listed"),
    [("other", "a, b, empty"), ("b/x=3", "b/x=1, b/x=2"), ("../a", "a, b, empty"), ("", "a, b, empty")],
)
def test_a_name_that_is_no_run_lists_those_that_are(runs: Path, name: str, listed: str) -> None:
    for open_ in (lambda: open_run(runs, name), lambda: open_arms(runs, [name]), lambda: recorded(runs, name)):
        with refused(DataError, name, f"{listed}."):
            open_()


def test_several_arms_are_no_single_run(runs: Path) -> None:
    with refused(DataError, str(runs / "b"), "b/x=1, b/x=2."):
        open_run(runs, "b")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_the_runs_that_are_there(
    command: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["other" if word == "mine" else word for word in COMMANDS[command]]
    assert main([*words, "--runs", str(runs)]) == 2
    named(capsys.readouterr().err, f"{runs / 'other'}: ", f"{runs} ", "a, b, empty.\n")
