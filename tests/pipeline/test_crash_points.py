"""A crash before any change of the file system costs work and no bytes; see tests/crash.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("scenario", "fewest"), [("steps", 60), ("successor", 60), ("set_aside", 9), ("dropped", 5), ("export_folder", 6)]
)
def test_every_crash_is_survived(scenario: str, fewest: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash", scenario, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == {}, done.stderr[-3000:]
    assert found["early"] == []
    assert found["points"] >= fewest
