"""The benchmark of sampling runs, at a tiny size, and writes the rows it promises; no time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_bookkeeping_of_sampling(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/sample.py", "--only", "bookkeeping", "--prompts-at-scale", "600"]
    done = subprocess.run([*command, "--json", str(rows)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(rows.read_text())
    assert all(row.keys() >= {"case", "metric", "value", "unit", "baseline", "ratio", "aim"} for row in found)
    assert {500, 60, 10} <= {row["aim"] for row in found if row["aim"] is not None}
    assert all("stand-in" in row["case"] for row in found) and "cores" in done.stdout
