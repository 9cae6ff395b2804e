"""What a tracker gets, read back from TensorBoard's own file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.job import Input
from stages.train import sinks
from stages.train.stage import Trained, run
from tests.stages.train.rig import digests, kill_at, runtime, steps, train_job


@pytest.mark.slow
@pytest.mark.faults
def test_tensorboard_has_every_number_of_every_step(undisturbed: Trained, inputs: list[Input], tmp_path: Path) -> None:
    """Also over a death, after which a step may come twice with the same numbers; the artifact is the same."""
    how = runtime(sinks=("tensorboard",), tracked_as="mine/arm=a/iter-01")
    made = run(train_job(tmp_path, inputs, how=how), kill_at(5)[1])
    assert digests(made) == digests(undisturbed)
    seen: dict[tuple[str, int], set[float]] = {}
    files = sorted((tmp_path / "tensorboard" / "arm=a" / "iter-01").glob("events.out.*"))
    for file in files:
        found = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in found.Tags()["scalars"]:
            for scalar in found.Scalars(tag):
                seen.setdefault((tag, scalar.step), set()).add(scalar.value)
    assert len(files) == 2
    for record in steps(made):
        for name, value in record.items():
            (found_once,) = seen[f"train/{name}", record["step"]]  # a step that came twice said the same
            assert found_once == pytest.approx(float(value), rel=1e-6), name


def test_what_is_set_stays(inputs: list[Input], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_PROJECT", "WANDB_RESUME", "MLFLOW_EXPERIMENT_NAME", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "kept") if name == "WANDB_PROJECT" else monkeypatch.setenv(name, "")
    monkeypatch.setenv("WANDB_RUN_ID", "")
    for name in ("WANDB_RESUME", "TENSORBOARD_LOGGING_DIR", "WANDB_RUN_ID"):
        del os.environ[name]
    job = train_job(tmp_path, inputs, how=runtime(tracked_as="mine/iter-02"))
    sinks.settle(job)
    assert os.environ["WANDB_PROJECT"] == "kept" and os.environ["WANDB_RESUME"] == "allow"
    assert os.environ["WANDB_RUN_ID"] == f"train-{job.fingerprint[:8]}"
    assert Path(os.environ["TENSORBOARD_LOGGING_DIR"]) == job.scratch.parent / "tensorboard" / "iter-02"
