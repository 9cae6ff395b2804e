"""What live trackers get of a training's definition."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparring.stages.step import Job
from sparring.stages.train.config import TRAIN
from sparring.stages.train.trainer.trackers import LONGEST, Parameters, parameters, to_mlflow
from tests.artifacts import as_job
from tests.stages.train.rig import settings


def test_a_configuration_is_flat_text() -> None:
    values = {"lr": 1e-5, "adapter": {"targets": ["q"], "none": {}}, "name": "x" * 900, "on": True, "no": None}
    assert parameters(values) == {
        "lr": "1e-05",
        "adapter.targets": '["q"]',
        "adapter.none": "{}",
        "name": "x" * LONGEST,
        "on": "true",
        "no": "null",
    }


def test_mlflow_takes_a_hundred_at_once() -> None:
    batches: list[dict[str, str]] = []
    to_mlflow(SimpleNamespace(log_params=batches.append), {f"k{i}": i for i in range(230)})
    assert [len(batch) for batch in batches] == [100, 100, 30] and batches[2]["k229"] == "229"


def test_a_training_gives_mlflow_what_defines_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    job: Job = as_job(TRAIN, settings(lr=3e-5, sinks=("mlflow",)), [], tmp_path)
    with mlflow.start_run() as active:
        for rank_zero in (False, True):
            state: Any = SimpleNamespace(is_world_process_zero=rank_zero)
            Parameters(job).on_train_begin(None, state)
            params = mlflow.get_run(active.info.run_id).data.params
            assert bool(params) == rank_zero
    assert (params["sparring.trainer.lr"], params["sparring.objective.name"]) == ("3e-05", "sppo")
    assert params["sparring.fingerprint"] == job.fingerprint
