"""`sparring logs`: the first error before all else, any log in little memory, nothing that steers a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.runs import logs
from tests.pipeline.cli.day import SAMPLE, TODO, aged, begun, driven, write
from tests.pipeline.report.fabricated import Run
from tests.refusals import named

TRACE = (
    "Traceback (most recent call last):\n"
    + '  File "x.py", line 1\n    f()\n' * 20
    + "ValueError: bad \x1b[2Jtoken\nafter\n"
)
STARTED = {
    "event": "step_started",
    "step": SAMPLE,
    "kind": "sample",
    "label": TODO[SAMPLE]["label"],
    "done": 0,
    "of": 4,
}
TRAINING = {"step": "train-5a6b7c8d", "kind": "train", "label": "iteration 1 train", "done": 0, "of": 0}


def log(run: Run, name: str, text: str) -> Path:
    path = run.folder / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = begun(
        tmp_path,
        {**STARTED, "attempt": "aa"},
        {"event": "step_started", **TRAINING, "attempt": "b0b1"},
        {"event": "failed", "text": f"{SAMPLE}: shard 0 failed"},
    )
    aged(log(run, "ray.log", "fine\n2026-01-02 03:04:05,006 ERROR gcs.cc: lost\n"), 9)
    log(run, f"{SAMPLE}-0-17.log", "INFO 01-02 no ERROR here\nloading\n" + TRACE)
    log(run, "train.b0b1/rank-0.log", "rank 0\n" + "line\n" * 50)
    return run


def shown(run: Run, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["logs", run.name, *words, "--runs", str(run.folder.parent)]) == 0
    return capsys.readouterr().out


def test_the_first_error_is_of_the_step_that_failed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(run, capsys).splitlines()
    assert lines[0].startswith("run mine: failed")
    assert lines[1] == f"first error: {run.folder}/logs/{SAMPLE}-0-17.log:3"
    assert lines[2].split() == ["3", "Traceback", "(most", "recent", "call", "last):"]
    assert lines[2 + logs.EXCERPT].split(maxsplit=1) == ["44", "ValueError: bad \\x1b[2Jtoken"]
    assert lines[3 + logs.EXCERPT] == f"also: {run.folder}/logs/ray.log:2  2026-01-02 03:04:05,006 ERROR gcs.cc: lost"
    heads = [line for line in lines if line.startswith("==>")]
    assert [Path(head.split()[1].rstrip(",")).name for head in heads] == [
        "events.jsonl",
        "ray.log",
        f"{SAMPLE}-0-17.log",
        "rank-0.log",
    ]
    assert lines[-20:] == ["line"] * 20 and "rank 0" not in lines


@pytest.mark.parametrize("step", ["train", "train-5a6b7c8d"])
def test_the_logs_of_one_step(run: Run, capsys: pytest.CaptureFixture[str], step: str) -> None:
    text = shown(run, capsys, "--step", step, "--lines", "1")
    assert "rank-0.log" in text and "ray.log" not in text and SAMPLE not in text.split("\n", 1)[1]
    assert main(["logs", run.name, "--step", "embed", "--runs", str(run.folder.parent)]) == 2
    named(capsys.readouterr().err, "--step embed", "ray.log")


def test_logs_of_an_earlier_start_are_left_out(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    aged(run.folder / "logs" / f"{SAMPLE}-0-17.log", 600)
    assert "ValueError" not in shown(run, capsys)


def test_a_large_log_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PIECE", 1 << 16)
    path = tmp_path / "large.log"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"x" * 99 + b"\n" * 1 + b"y" * 200_000 + b"\n")
        file.write(b"Traceback (most recent call last):\n  f()\nKeyError: 'a'\n" + b"z" * 3_000_000)
    tracemalloc.start()
    error, last = logs.first_error(path), logs.last_lines(path, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error and [one.number for one in error.lines] == [201, 202, 203]
    assert error.lines[-1].text == "KeyError: 'a'"
    assert max(map(len, last)) <= logs.LONGEST and peak < 4 << 20


@pytest.mark.parametrize("piece", [7, 30, 1000])
def test_an_error_is_found_wherever_a_piece_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(logs, "PIECE", piece)
    path = tmp_path / "log"
    path.write_text("one\ntwo\n\x1b[31mERROR 01-02 [core.py:3] no\nthree\n")
    error = logs.first_error(path)
    assert error and error.lines[0] == (3, "ERROR 01-02 [core.py:3] no")


@pytest.mark.parametrize(
    "line",
    [
        "2026-01-02 03:04:05,006 ERROR services.py:1 -- lost",
        "[2026-01-02 03:04:05,006] [ERROR] [launch.py:3] no",
        "[2026-01-02 03:04:05,006 E 17 19] (raylet) node.cc: lost",
        "(EngineCore pid=17) ERROR 01-02 03:04:05 [core.py:3] no",
        "[rank0]: Traceback (most recent call last):",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate",
        "ERROR:root:no",
    ],
)
def test_how_errors_begin(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log"
    path.write_text(f"INFO\n{line}\n")
    error = logs.first_error(path)
    assert error and error.lines[0].number == 2


def test_what_only_speaks_of_errors_is_none(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(
        "INFO errors are retried\nloss 0.3, grad error 0.1\nhandler for ValueErrors\nsays: an ERROR in prose\n"
    )
    assert logs.first_error(path) is None


def test_of_a_bar_that_is_drawn_over_the_last_state_is_shown() -> None:
    assert logs.plain(b"  0%|   |\r 50%|## |\r100%|###|\n") == "100%|###|"


def test_following_ends_with_the_run(tmp_path: Path) -> None:
    run = begun(tmp_path)
    path = log(run, f"{SAMPLE}-0-17.log", "old\n")
    words = [sys.executable, "-m", "sparring", "logs", run.name, "--follow", "--lines", "1"]
    with driven(run):
        process = subprocess.Popen(
            [*words, "--runs", str(run.folder.parent)], stdout=subprocess.PIPE, text=True, env={**os.environ}
        )
        assert process.stdout
        while process.stdout.readline() != "old\n":
            pass
        with path.open("a") as file:
            file.write("new\n")
        log(run, f"{SAMPLE}-1-18.log", "another\n")
        while process.stdout.readline() != "another\n":
            pass
        write(run, {"event": "stopped", "text": "by hand"})
    rest, _ = process.communicate(timeout=60)
    assert "stopped: by hand" in rest and process.returncode == 0
