"""The event stream: every event a JSON line; a log gets plain lines."""

import io
import json
from pathlib import Path

import pytest

from sparring.pipeline.execution.events import Events, describe
from sparring.pipeline.execution.executor import Pace

STEP = {"step": "sample-1f2e3d4c", "kind": "sample", "label": "iteration 1 sample"}


def test_events_are_recorded_and_shown(tmp_path: Path) -> None:
    stream = io.StringIO()
    events = Events(tmp_path / "events.jsonl", stream)
    events("step_started", **STEP, why="never made", done=0, of=4)
    events("worker", **STEP, pid=17)
    events("shard", **STEP, done=1, of=4, tokens_per_s=312.4, eta_s=30.2)
    events("step_done", **STEP, seconds=41.0, rows={"in": 64, "out": 60, "dropped": {"tie": 4}})
    events.close()
    records = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [r["event"] for r in records] == ["step_started", "worker", "shard", "step_done"]
    shown = stream.getvalue().splitlines()
    assert len(shown) == 3
    assert "1/4 312 tokens/s ETA 30 s" in shown[1]
    assert "64 rows in, 60 out, dropped: tie 4" in shown[2]


def test_the_time_left_does_not_count_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 120.0])  # the first result comes when the engine has started, 100 s in
    monkeypatch.setattr("sparring.pipeline.execution.executor.time.monotonic", lambda: next(clock))
    pace = Pace()
    assert pace.left_s(3, 10) is None  # two were there before
    assert pace.left_s(4, 10) == 60.0
    assert pace.left_s(5, 10) == 50.0


def test_losses_are_shown() -> None:
    line = describe({"event": "train_step", **STEP, "done": 2, "of": 8, "loss": 12345.678})
    assert line is not None and "2/8 loss 1.235e+04" in line


def test_a_second_run_appends(tmp_path: Path) -> None:
    for _ in range(2):
        events = Events(tmp_path / "events.jsonl", io.StringIO())
        events("message", text="hello")
        events.close()
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2
