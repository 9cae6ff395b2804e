"""A crash before any change of a folder or a bucket costs work and no bytes; see tests/crash.py and crash_bucket.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("module", "scenario", "fewest"),
    [
        ("crash", "steps", 60),
        ("crash", "successor", 60),
        ("crash", "set_aside", 9),
        ("crash", "dropped", 5),
        ("crash", "export_folder", 6),
        pytest.param("crash_bucket", "steps", 16, marks=pytest.mark.slow),
        pytest.param("crash_bucket", "successor", 15, marks=pytest.mark.slow),
    ],
)
def test_every_crash_is_survived(module: str, scenario: str, fewest: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{module}", scenario, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == {}, done.stderr[-3000:]
    assert found["early"] == []
    assert found["points"] >= fewest
