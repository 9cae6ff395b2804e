"""A real run that keeps its last policy alone: the one before is made again, byte for byte, when a step needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import Run, contents, overrides, write_prompts

pytestmark = [pytest.mark.faults, pytest.mark.slow]
KEPT = ("iterations=2", "keep.policies=last", "keep.samples=last")


def test_what_was_dropped_is_made_again_when_it_is_needed(policy: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl")
    run = Run(tmp_path, overrides(tmp_path, policy, "evaluate.kl=false", *KEPT))
    run.finish()
    made = contents(tmp_path)
    first, second = (next((tmp_path / "runs/default" / t).glob("train-*")) for t in ("iter-01", "iter-02"))
    left = sorted(path.name.partition(".")[0] for path in first.iterdir())
    assert left == ["dropped", "manifest", "metrics"] and list(second.glob("model.*/*.safetensors"))
    log = tmp_path / "driver.log"
    log.write_text("")
    run.finish()
    assert "nothing to do" in log.read_text()
    Run(tmp_path, overrides(tmp_path, policy, "evaluate.kl=true", *KEPT)).finish()
    again = contents(tmp_path)
    assert made.items() <= again.items() and "02/logprobs_previous" in again
    assert sorted(path.name.partition(".")[0] for path in first.iterdir()) == left
