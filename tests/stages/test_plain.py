"""What models, files and servers write cannot steer a terminal."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from sparring.pipeline import cli
from sparring.pipeline.cli import verify as cli_verify
from sparring.pipeline.execution.events import Events
from sparring.pipeline.report.inspect import print_prompt
from sparring.pipeline.report.prompts import AnnotatedIteration
from sparring.pipeline.runs.run_history import open_run
from sparring.stages.errors import first_line
from sparring.stages.plain import printable
from sparring.stages.sample.stage import SAMPLES_SCHEMA
from tests.pipeline.report.fabricated import Run, duel, samples_table

ROOT = Path(__file__).parents[2]
PLANTED = "\x1b]0;owned\x07\x1b[31mred\u202e"
"""Sets a window's title, a colour, and turns the line around."""
SPELLED = "\\x1b]0;owned\\x07\\x1b[31mred\\u202e"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("a\rb\x00c\x9bd\x7f", "a\\x0db\\x00c\\x9bd\\x7f"),
        ("evil\u202etxt\u2066\u200f", "evil\\u202etxt\\u2066\\u200f"),
        ("two\u2028lines\ud800\U000e0041", "two\\u2028lines\\ud800\\U000e0041"),
        ("kept:\n\ttab, 👩\u200d🚀, ن\u200cم, é", "kept:\n\ttab, 👩\u200d🚀, ن\u200cم, é"),
        ("[bold]no markup[/bold]", "[bold]no markup[/bold]"),
    ],
)
def test_control_characters_are_spelled(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(("text", "line"), [("\n a b\nc", "a b"), (" \n", "ValueError"), ("", "ValueError")])
def test_the_first_line_of_an_error_is_its_class_where_it_has_no_text(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line


def test_a_message_that_quotes_a_file_is_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The columns of a file are named where none is known; the message stays one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({PLANTED: "a"}) + "\n")
    assert cli.main(["oracle", "check", "pairs.jsonl", "hardware=cpu"]) == 2
    error = capsys.readouterr().err
    assert SPELLED in error and "\x1b" not in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError(PLANTED), OSError(5, PLANTED)])
def test_so_is_one_that_nobody_expected(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify() -> int:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_verify, "verify", verify)
    assert cli.main(["verify"]) in (1, 2)
    said = capsys.readouterr().err
    assert "owned" in said and "\x1b" not in said and "\u202e" not in said


def test_so_are_events_and_the_stream_keeps_them_as_they_are(tmp_path: Path) -> None:
    stream = io.StringIO()
    events = Events(tmp_path / "events.jsonl", stream)
    events("message", text=f"server says {PLANTED}")
    events.close()
    assert f"server says {SPELLED}" in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert json.loads((tmp_path / "events.jsonl").read_text())["text"] == f"server says {PLANTED}"


def test_a_report_is_whole_where_the_locale_is_not_utf8(tmp_path: Path) -> None:
    """Characters that the terminal lacks are replaced; files are UTF-8 everywhere."""
    run = Run(tmp_path).begin()
    run.add(1, "sample", [samples_table({"a": duel("Say π.", "π", "no", 0.5)})])
    command = [sys.executable, "-m", "sparring", "report", run.name, "--runs", str(run.root / "runs")]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env={**os.environ, **locale}, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "π" in (run.root / "runs" / run.name / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["pipeline", "stages", "scripts", "benchmarks"])
def test_every_file_of_text_is_opened_as_utf8(folder: str) -> None:
    """As ruff asks where it knows that a value is a path."""
    missing = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in (ROOT / folder).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and _of_text(call) and "encoding" not in {word.arg for word in call.keywords}
    ]
    assert not missing


def _of_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    modes = [one.value for one in call.args[:1] if isinstance(one, ast.Constant)]
    return name in ("read_text", "write_text") or (name == "open" and modes in (["r"], ["w"], ["a"], ["x"]))


def test_so_are_the_roles_of_a_conversation(tmp_path: Path) -> None:
    (row,) = samples_table({"a": duel("Say it.", "yes", "no", 0.5)}).to_pylist()
    row["messages"].append({"role": PLANTED, "content": "and more"})
    run = Run(tmp_path).begin()
    run.add(1, "sample", [pa.Table.from_pylist([row], schema=SAMPLES_SCHEMA)])
    stream = io.StringIO()
    print_prompt(
        AnnotatedIteration.of(open_run(run.root / "runs", run.name), None), "a", False, Console(file=stream, width=160)
    )
    assert f"{SPELLED}: and more" in stream.getvalue() and "\x1b" not in stream.getvalue()
