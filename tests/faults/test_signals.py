"""SIGTERM to a run that trains: it saves, says where, ends with 143, and goes on from there to the same bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.harness import DEADLINE_S, Run, contents, overrides, wait_for, without

pytestmark = pytest.mark.faults


@pytest.mark.slow
def test_a_terminated_run_saves_its_training_and_resumes(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    without(undisturbed, tmp_path, "01/train")
    run = Run(tmp_path, overrides(tmp_path, policy, "trainer.checkpoint_steps=100"))
    process = run.start()
    wait_for(run, process, 0, lambda e: e["event"] == "worker" and e["kind"] == "train")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM
    log = (tmp_path / "driver.log").read_text()
    assert log.splitlines()[-1] == "training stopped at step 1 of 8 by SIGTERM; run the same command again to resume."
    assert "Traceback" not in log
    begun = run.events.stat().st_size
    process = run.start()
    again = wait_for(run, process, begun, lambda e: e["event"] == "train_step")
    assert again["done"] == 2 and again["grad_norm"] > 0 and again["step"].startswith("train-")
    assert process.wait(DEADLINE_S) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    assert contents(tmp_path) == contents(undisturbed)
