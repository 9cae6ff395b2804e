"""`sparring sync` to W&B, MLflow and trackio, where they are installed: what they kept is read back, offline."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.report import trackers
from sparring.pipeline.runs.run_history import open_run
from sparring.stages.train.trainer.trackers import parameters
from tests.pipeline.export.fabricated import Fabricated

BLOCK = 32768
WHOLE, LAST = 1, 4
Series = dict[str, list[tuple[float, float]]]
"""Name of a figure -> (x, value) in the order in which they were logged."""


@pytest.fixture
def run(tmp_path: Path) -> Fabricated:
    """Two iterations of 8 optimizer steps, and a third one whose training has done 2."""
    made = Fabricated.of_third_training(tmp_path, (0.61, 0.5, 0.7), (0.62, 0.5, 0.7))
    made.step(3, "sample", {"length_mean": 60.5})
    shown = {"event": "train_step", "step": "train-abababab", "label": "iteration 3 train"}
    events = [{**shown, "time": 50.0 + i, "done": i, "loss": loss} for i, loss in ((1, 2.5), (2, 3.5))]
    (made.runs / "mine" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return made


def of_mlflow(folder: Path) -> Series:
    import mlflow

    client = mlflow.MlflowClient(f"file://{folder / 'mlruns'}")
    experiment = client.get_experiment_by_name("theirs")
    assert experiment is not None
    (only,) = client.search_runs([experiment.experiment_id])  # that of the first call is gone
    assert only.info.run_name == "mine" and only.info.status == "FINISHED"
    params = only.data.params
    assert params["objective.name"] == "sppo" and params["sampler.k"] == "4" and params["win_rate"] == "matrix"
    assert set(params) == set(parameters(open_run(folder / "runs", "mine").config)) and len(params) > 100
    histories = {name: client.get_metric_history(only.info.run_id, name) for name in only.data.metrics}
    assert histories["train/loss"][-1].timestamp == 52_000  # when the step was done, not when it was fed
    return {name: [(point.step, point.value) for point in points] for name, points in histories.items()}


def of_trackio(folder: Path) -> Series:
    with sqlite3.connect(folder / "trackio" / "theirs.db") as there:
        logged = there.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
        ((name, config),) = there.execute("SELECT run_name, config FROM configs").fetchall()
    assert name == "mine" and json.loads(config)["objective"]["name"] == "sppo"
    assert [(run, step) for run, step, _ in logged] == [("mine", i) for i in range(20)]  # once, after two calls
    return series(json.loads(metrics) for _, _, metrics in logged)


def of_wandb(folder: Path) -> Series:
    """What would be uploaded: both calls name one run and number its rows alike, so that it has each row once."""
    first, second = (list(kept(path)) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")))
    (begun,), (again,) = ([r.run for r in records if r.HasField("run")] for records in (first, second))
    assert begun.run_id == again.run_id and begun.display_name == "mine" and begun.project == "theirs"
    config = {item.key: json.loads(item.value_json) for item in again.config.update}
    assert config["objective"]["name"] == "sppo"
    axes = {r.metric.glob_name or r.metric.name: r.metric.step_metric for r in second if r.HasField("metric")}
    assert axes["train/*"] == trackers.TRAIN and axes["*"] == trackers.ITERATION
    rows, before = (
        [{".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item} for r in records
         if r.HasField("history")]
        for records in (second, first)
    )  # fmt: skip
    assert [row["_step"] for row in rows] == [row["_step"] for row in before] == list(range(20))
    return series(rows)


def kept(path: Path) -> Iterator[Any]:
    """Yield the records of W&B's file: blocks as those of LevelDB, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, held = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        held += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(held)
            yield record
            held = b""


def series(rows: Iterable[Mapping[str, float]]) -> Series:
    """Return each figure over its own axis."""
    found: Series = {}
    for row in rows:
        for name, value in row.items():
            axis = trackers.TRAIN if name.startswith("train/") else trackers.ITERATION
            if name not in (trackers.TRAIN, trackers.ITERATION) and not name.startswith("_"):
                found.setdefault(name, []).append((row[axis], value))
    return found


READERS: dict[str, Callable[[Path], Series]] = {"mlflow": of_mlflow, "trackio": of_trackio, "wandb": of_wandb}


@pytest.mark.parametrize("tracker", READERS)
def test_a_tracker_has_every_number_once_after_two_calls(
    run: Fabricated, tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    settings = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "MLFLOW_TRACKING_URI": f"file://{tmp_path / 'mlruns'}",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    for _ in range(2):
        assert main(["sync", "mine", "--runs", str(run.runs), "--to", tracker, "--project", "theirs"]) == 0
        assert f"{tracker}: optimizer steps: 18, iterations: 2" in capsys.readouterr().out
    found = READERS[tracker](tmp_path)
    losses = [9 / i for i in range(1, 9)]
    assert found["train/loss"] == [*enumerate([*losses, *losses, 2.5, 3.5], start=1)]
    assert found["train/head_in_band"] == [(i, 0.25) for i in range(1, 17)]
    assert found["trained/head_in_band"] == [(1, 0.5), (2, 0.5)]
    assert found["evaluate/second_vs_base/win_rate"] == [(1, 0.61), (2, 0.62)]
    wanted: Series = {}
    for row in trackers.metrics_of(open_run(run.runs, "mine")):
        for name, number in row.values.items():
            wanted.setdefault(name, []).append((row.x, number))
    assert found == {name: [(x, pytest.approx(number)) for x, number in points] for name, points in wanted.items()}
