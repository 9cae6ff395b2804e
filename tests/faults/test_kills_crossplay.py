"""kill -9 of the driver while it makes the cross-play of two iterations, of which all else is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparring.pipeline.cli import prepare as cli_prepare
from tests.faults.harness import Run, contents, disturb, overrides, without, write_prompts
from tests.pipeline.test_crossplay_run import all_but_crossplay

pytestmark = pytest.mark.faults


@pytest.mark.slow
def test_a_kill_during_crossplay(policy: Path, tmp_path: Path) -> None:
    base, folder = tmp_path / "undisturbed", tmp_path / "killed"
    runs = {}
    for place in (base, folder):
        place.mkdir()
        runs[place] = Run(place, overrides(place, policy, "iterations=2"))
    write_prompts(base / "prompts.jsonl")
    all_but_crossplay(cli_prepare.plan_of({"": runs[base].arguments}), base / "store")
    runs[base].finish()
    without(base, folder, "02/crossplay")
    disturb(runs[folder], "crossplay", "driver", "during")
    assert contents(folder) == contents(base) and "02/crossplay" in contents(base)
