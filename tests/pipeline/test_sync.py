"""`sparring sync`: what a tracker is given, read back from TensorBoard's files; other trackers are test_trackers.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.cli import run as cli_run
from sparring.pipeline.cli import sync as cli_sync
from sparring.pipeline.report import trackers
from sparring.pipeline.runs.run_history import RunHistory, open_run
from sparring.pipeline.store.manifest import Artifact
from tests.pipeline.export.fabricated import Fabricated
from tests.pipeline.test_diagnostics import finish, plan_of
from tests.pipeline.test_report import ROUND
from tests.refusals import named


@pytest.fixture
def run(tmp_path: Path) -> Fabricated:
    """Two iterations that are done, and a third one that trains."""
    made = Fabricated.of_third_training(tmp_path, (0.6, 0.5, 0.7), (0.6, 0.5, 0.7))
    made.step(2, "sample", {"length_mean": 70.5, "redealt": 0, "histogram": {"n": 3}})
    made.step(2, "crossplay", {"policies": 3, "judges": {"oracle": ROUND}})
    made.step(3, "sample", {"length_mean": 60.5})
    before = stepped("train-cdcdcdcd", 9.5)  # with another configuration
    again = [*stepped("train-abababab", 1.5), *stepped("train-abababab", 2.5, 3.5)]  # killed after its first step
    events = [{"event": "message", "text": "x"}, *before, *again]
    lines = [json.dumps(event) for event in events]
    (made.runs / "mine" / "events.jsonl").write_text("\n".join(lines) + '\n{"event": "train_st')
    return made


def stepped(step: str, *losses: float) -> list[dict[str, Any]]:
    """Return the events of a training's first steps."""
    return [
        {"time": 50.0 + i, "event": "train_step", "step": step, "label": "iteration 3 train", "done": i, "loss": loss}
        for i, loss in enumerate(losses, start=1)
    ]


def test_rows_are_steps_of_all_iterations_and_figures_of_each(run: Fabricated) -> None:
    rows = list(trackers.metrics_of(open_run(run.runs, "mine")))
    trained = [row for row in rows if row.axis == trackers.TRAIN]
    assert [row.x for row in trained] == list(range(1, 19))
    assert [row.values["train/loss"] for row in trained[7:10]] == [9 / 8, 9.0, 4.5]
    assert trained[0].values == {"train/loss": 9.0, "train/clipped": 1.0, "train/head_in_band": 0.25}
    assert [(row.values["train/loss"], row.time) for row in trained[16:]] == [(2.5, 51.0), (3.5, 52.0)]
    figures = {row.x: row.values for row in rows if row.axis == trackers.ITERATION}
    assert figures[1]["evaluate/second_vs_base/win_rate"] == 0.6 and figures[2]["trained/changed_fraction"] == 0.99
    sampled = {"sample/length_mean": 70.5, "sample/redealt": 0.0, "sample/seconds": 20.0, "sample/tokens_per_s": 250.0}
    assert sampled.items() <= figures[2].items() and figures.keys() == {1, 2}  # 3 is not evaluated yet
    assert [row.axis for row in rows[:10]] == [trackers.TRAIN] * 8 + [
        trackers.ITERATION,
        trackers.TRAIN,
    ]  # grows at its end alone


def test_no_name_is_on_two_axes(run: Fabricated) -> None:
    """A training's summary has figures that its steps have too: a tracker would draw them as one."""
    names: dict[str, set[str]] = {trackers.TRAIN: set(), trackers.ITERATION: set()}
    for row in trackers.metrics_of(open_run(run.runs, "mine")):
        names[row.axis] |= row.values.keys()
    assert not names[trackers.TRAIN] & names[trackers.ITERATION]
    assert "train/head_in_band" in names[trackers.TRAIN] and "trained/head_in_band" in names[trackers.ITERATION]
    assert not [name for name in names[trackers.ITERATION] if name.startswith("train/")]  # W&B tells the axis by that


def test_an_arm_has_its_own_unfinished_training(tmp_path: Path) -> None:
    """Two arms train iteration 1 on the same samples, one after another; the stream is that of both."""
    arms = ["gate=off", "gate=linear"]
    plan, store = plan_of(tmp_path, {arm: [arm] for arm in arms}), tmp_path / "store"
    for arm in arms:
        cli_run._begin(plan, arm, [], {})
    for step in (one for one in plan.steps.values() if one.uses[0].label in ("prompts", "sample")):  # which both have
        finish(plan, step, store, {})
        manifest = Artifact(store, step.spec.kind, step.fingerprint).manifest()
        assert manifest is not None
        cli_run._link_step(plan, store, step, manifest)
    train = {arm: next(s.name for use, s in plan.arm(arm) if use.label == "train") for arm in arms}
    losses = {arms[0]: (1.5, 2.5), arms[1]: (3.5,)}
    events = [event for arm in arms for event in stepped(train[arm], *losses[arm])]
    (tmp_path / "runs" / "mine" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for arm in arms:
        rows = list(trackers.metrics_of(open_run(tmp_path / "runs", f"mine/{arm}")))
        assert [(row.axis, row.x, row.values) for row in rows] == [
            (trackers.TRAIN, i, {"train/loss": loss}) for i, loss in enumerate(losses[arm], start=1)
        ]


def test_panel_and_cross_play_are_among_the_figures(run: Fabricated) -> None:
    rows = list(trackers.metrics_of(open_run(run.runs, "mine")))
    first, second = (row.values for row in rows if row.axis == trackers.ITERATION)
    panel = {"panel/played_length_mean": 70.5, "panel/probe_h_l": -87.2, "panel/second_base_low": 0.5}
    assert panel.items() <= second.items() and not [name for name in first if name.startswith("crossplay")]
    played = {name.removeprefix("crossplay/oracle/"): x for name, x in second.items() if name.startswith("crossplay/o")}
    assert played == {
        "1_vs_0/win_rate": 0.7, "2_vs_0/win_rate": 0.4, "2_vs_1/win_rate": 0.51,
        "1_vs_0/low": 0.6, "2_vs_0/low": 0.3, "2_vs_1/low": 0.45,
        "1_vs_0/high": 0.75, "2_vs_0/high": 0.45, "2_vs_1/high": 0.6,
        "cyclic": 1.0, "cyclic_beyond_doubt": 0.0,
        "exploitability/0": 0.2, "exploitability/1": 0.01, "exploitability/2": 0.1,
        "mixture/0": 0.03, "mixture/1": 0.32, "mixture/2": 0.65,
        "average_exploitability": 0.063, "mixture_exploitability": -1e-17, "duality_gap": 0.0,
    }  # fmt: skip


def test_numbers_that_are_none_are_left_out() -> None:
    record = {"loss": float("nan"), "grad_norm": float("inf"), "lr": 1e-5, "of": 8, "note": "x", "in_band": None}
    assert trackers.numbers("train", record) == {"train/lr": 1e-5}


def test_tensorboard_has_it_once_after_two_calls(run: Fabricated, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        assert main(["sync", "mine", "--runs", str(run.runs), "--to", "tensorboard"]) == 0
    assert "tensorboard: optimizer steps: 18, iterations: 2" in capsys.readouterr().out
    folder = run.runs / "mine" / "tensorboard-sync"
    (file,) = folder.iterdir()
    read = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    loss = read.Scalars("train/loss")
    assert [scalar.step for scalar in loss] == list(range(1, 19)) and loss[-1].value == 3.5 and loss[-1].wall_time == 52
    assert [(s.step, round(s.value, 6)) for s in read.Scalars("evaluate/second_vs_base/low")] == [(1, 0.5), (2, 0.5)]
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".tensorboard")]


def test_a_damaged_configuration_does_not_keep_tensorboard_from_the_figures(run: Fabricated) -> None:
    whole = list(trackers.metrics_of(open_run(run.runs, "mine")))
    (run.runs / "mine" / "config.yaml").write_text("diagnostics: {longer: [")
    assert list(trackers.metrics_of(open_run(run.runs, "mine"))) == whole
    assert main(["sync", "mine", "--runs", str(run.runs), "--to", "tensorboard"]) == 0


def test_refusals_are_one_line(
    run: Fabricated, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*words: str) -> str:
        assert main(["sync", "mine", "--runs", str(run.runs), *words]) == 2
        return capsys.readouterr().err

    named(error("--to", "comet"), "--to comet", "tensorboard, wandb, mlflow, trackio")
    named(error("--to", "tensorboard", "--project", "mine"), "--project", "tensorboard")
    monkeypatch.setattr(cli_sync, "find_spec", lambda name: None)
    named(error("--to", "wandb"), "error: --to wandb: ", "pip install")


def test_a_tracker_that_fails_is_one_line(
    run: Fabricated, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(found: RunHistory, project: str, rows: object) -> str:
        raise RuntimeError("no account\nTraceback")

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", broken)
    assert main(["sync", "mine", "--runs", str(run.runs), "--to", "tensorboard"]) == 2
    assert capsys.readouterr().err == "error: --to tensorboard: no account\n"
