"""When steps were made, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparring.pipeline.report.cost import stretches
from sparring.pipeline.report.html.charts import timeline_chart
from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.runs.timeline import timeline

NAMES = {"sample-2": (2, "sample"), "score-1": (1, "score_oracle_base"), "train-1": (1, "train")}


def event(time: float, event: str, step: str = "", **fields: Any) -> dict[str, Any]:
    return {"time": time, "event": event, "step": step, **fields}


PLANNED = {name: {"expected_s": s} for name, s in (("train-1", 100.0), ("sample-2", 30.0), ("another", 9.0))}
EVENTS = [
    event(1000.0, "run_started", todo=PLANNED),
    event(1000.0, "step_started", "train-1"),  # killed, and begun again an hour later
    event(5000.0, "step_started", "train-1"),
    event(5001.0, "load", "train-1"),
    event(5090.0, "step_done", "train-1"),
    event(5090.0, "step_started", "sample-2"),
    event(5091.0, "load", "sample-2"),
    event(5100.0, "step_started", "score-1"),
    event(5101.0, "load", "of another arm"),
    event(5120.0, "step_done", "score-1"),
    event(5130.0, "step_done", "sample-2"),
    event(5130.0, "step_started", "of another arm"),
]


def test_what_overlaps_is_saved_and_idle_time_is_left_out() -> None:
    later = [event(9000.0, "step_started", "last"), event(9010.0, "step_done", "last")]
    found = timeline([*EVENTS, *later], {**NAMES, "last": (2, "score")})
    assert found is not None
    assert [(span.label, span.begin, span.end, span.planned) for span in found.spans] == [
        ("train", 0.0, 90.0, 100.0),
        ("sample", 90.0, 130.0, 30.0),
        ("score_oracle_base", 100.0, 120.0, None),
        ("score", 130.0, 140.0, None),
    ]
    assert (found.wall, found.saved, found.loads) == (140.0, pytest.approx(20.0), 2)
    assert found.sentence == (
        "4 steps were made in 2.3 minutes by the clock, starts of workers included; side by side, which saved 20 "
        "seconds; 2 models were loaded; planned were 2.2 minutes for 2 of them, which took 2.2 minutes."
    )


def test_nothing_made_has_no_timeline() -> None:
    assert timeline(EVENTS[:4], NAMES) is None and timeline([], NAMES) is None


def test_bars_lie_where_their_steps_were_made() -> None:
    found = timeline(EVENTS, NAMES)
    assert found is not None
    rows = stretches(found)
    assert [name for name, _ in rows] == ["iter 1", "iter 2"]
    assert rows[0][1] == [("train", "train", 0.0, 90.0), ("evaluate", "score_oracle_base", 100.0, 120.0)]
    chart = timeline_chart("", rows, ["sample", "train", "evaluate"])
    assert chart is not None
    bars = {one.title: one.inside[0].attributes for one in chart.shapes if one.title}
    train, score, sample = (
        bars[name]
        for name in (
            "iter 1, train: 0 to 90 s",
            "iter 1, score_oracle_base: 100 to 120 s",
            "iter 2, sample: 90 to 130 s",
        )
    )
    assert float(sample["x"]) - float(train["x"]) == pytest.approx(float(train["width"]) + 0.5, abs=0.02)
    assert float(sample["x"]) < float(score["x"]) and float(sample["y"]) > float(score["y"])
    assert timeline_chart("", [], []) is None


def test_lines_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    lines = [json.dumps(EVENTS[1]), "3", "{", '{"event": "step_done"}', json.dumps(EVENTS[2])[:20]]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    assert list(RunHistory.at(tmp_path).events()) == [EVENTS[1]]
