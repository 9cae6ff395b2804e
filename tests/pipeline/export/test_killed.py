"""kill -9 in mid-export: a later export removes what is left, and nothing of one that goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparring.pipeline.cli import main
from tests.pipeline.export.fabricated import Fabricated
from tests.refusals import named

SLOW = """
import shutil
import sys
from sparring.pipeline.cli import main

copyfile = shutil.copyfile

def slow(source, path):
    copyfile(source, path)
    print("written", flush=True)
    sys.stdin.readline()

shutil.copyfile = slow
sys.exit(main(sys.argv[1:]))
"""
"""`sparring`, whose export waits for a line after each file that it copies."""


@pytest.fixture
def run(tmp_path: Path) -> Fabricated:
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "config.json").write_text('{"dtype": "float32"}')
    (policy / "model.safetensors").write_bytes(bytes(1000))
    made = Fabricated(tmp_path)
    made.begin()
    made.train(1, policy)
    made.evaluate(1, (0.6, 0.55, 0.65))
    (tmp_path / "out").mkdir()
    return made


def words(run: Fabricated, name: str) -> list[str]:
    return ["export", run.name, "--runs", str(run.runs), "--to", str(run.folder / "out" / name)]


def begun(run: Fabricated, name: str) -> subprocess.Popen[str]:
    """Start an export; return it when it has written its first file."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words(run, name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and "written\n" in process.stdout
    return process


def killed(run: Fabricated, name: str) -> None:
    process = begun(run, name)
    process.kill()
    process.communicate()
    assert left(run) == [f".{name}.sparring-staged", f".{name}.sparring-staged.json"]


def left(run: Fabricated) -> list[str]:
    return sorted(os.listdir(run.folder / "out"))


@pytest.mark.parametrize("again", ["a", "b"])
def test_the_next_export_removes_what_a_killed_one_left(run: Fabricated, again: str) -> None:
    killed(run, "a")
    assert main(words(run, again)) == 0
    assert left(run) == [again] and len(os.listdir(run.folder / "out" / again)) == 3


def test_an_export_that_goes_on_is_left_alone(run: Fabricated, capsys: pytest.CaptureFixture[str]) -> None:
    killed(run, "dead")
    live = begun(run, "live")
    assert main(words(run, "live")) == 2
    named(capsys.readouterr().err, "live", "host ", "since ", f"pid {live.pid}")
    assert main(words(run, "mine")) == 0
    assert left(run) == [".live.sparring-staged", ".live.sparring-staged.json", "mine"]
    live.communicate("\n" * 9, timeout=60)
    assert live.returncode == 0 and left(run) == ["live", "mine"]
    assert len(os.listdir(run.folder / "out" / "live")) == 3
