"""The step evaluate: one row per opponent and judge, prompts left out per judge, the alarm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparring.pipeline.config import load
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.evaluate.config import EVALUATE
from sparring.stages.evaluate.stage import EVALUATE_SCHEMA, Evaluator, finish, shards
from sparring.stages.step import Job
from tests import settings
from tests.artifacts import as_input, as_job, run_step, samples_table
from tests.refusals import refused

SETTINGS = settings.evaluate(resamples=500)
IDS = [f"p{i}" for i in range(24)]


def score_row(row_id: str, logit: float, trained_on: bool = False) -> dict[str, Any]:
    """One response against two: L = logit and L = 0, with a position bias of 1 that must cancel."""
    return {
        "id": row_id,
        "n_left": 1,
        "n_right": 2,
        "logits": [logit + 1.0, 1.0],
        "swapped": [1.0 - logit, 1.0],
        "truncated": [False, False],
        "trained_on": trained_on,
    }


def parts(logits: np.ndarray, trained_on: tuple[str, ...] = ()) -> list[pa.Table]:
    rows = [score_row(i, float(x), i in trained_on) for i, x in zip(IDS, logits, strict=True)]
    return [pa.Table.from_pylist(rows[12:]), pa.Table.from_pylist(rows[:12])]


def job_of(folder: Path, scores: dict[str, list[pa.Table]]) -> Job:
    samples = [samples_table({i: ["x"] for i in IDS[:12]}), samples_table({i: ["x"] for i in IDS[12:]})]
    inputs = [as_input(role, folder / role, tables) for role, tables in scores.items()]
    return as_job(EVALUATE, SETTINGS, [as_input("samples", folder / "samples", samples), *inputs], folder)


def run(job: Job) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    (table,), _, summary = run_step(job, Evaluator(job), shards, finish)
    assert table.schema == EVALUATE_SCHEMA
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    return table.to_pylist(), summary


def test_rows_and_alarm(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=24)
    up, down, level = (
        parts(2 + noise, trained_on=("p3", "p20")),
        parts(noise - 2),
        parts(noise - noise.mean()),
    )
    scores = {"oracle_previous": up, "second_previous": down, "oracle_base": level, "second_base": down}
    rows, summary = run(job_of(tmp_path, scores))
    assert [(r["opponent"], r["judge"]) for r in rows] == [
        ("previous", "oracle"),
        ("previous", "second"),
        ("base", "oracle"),
        ("base", "second"),
    ]
    kept = [x for i, x in zip(IDS, 2 + noise, strict=True) if i not in ("p3", "p20")]
    expected = np.mean([(1 / (1 + np.exp(-x)) + 0.5) / 2 for x in kept])
    assert rows[0]["win_rate"] == pytest.approx(expected, abs=1e-12)
    assert [(r["n"], r["dropped"]) for r in rows] == [(22, 2), (24, 0), (24, 0), (24, 0)]
    assert [r["informative"] for r in rows] == [True, True, False, True]
    assert rows[0]["low"] > 0.5 > rows[1]["high"] and rows[2]["low"] < 0.5 < rows[2]["high"]
    assert {k: v for k, v in rows[1].items() if k != "opponent"} == {
        k: v for k, v in rows[3].items() if k != "opponent"
    }
    assert summary["alarm"] is True and summary["alarms"] == ["previous"]
    assert summary["comparisons"] == rows and summary["prompts"] == 24


def test_no_alarm_when_both_judges_agree(tmp_path: Path) -> None:
    up = parts(2 + np.random.default_rng(0).normal(size=24))
    job = job_of(tmp_path, {f"{judge}_{foe}": up for judge in ("oracle", "second") for foe in ("previous", "base")})
    assert run(job)[1]["alarms"] == []


def test_a_best_of_n_policy_meets_its_own_single_responses(tmp_path: Path) -> None:
    up, down = parts(np.full(24, 2.0)), parts(np.full(24, -2.0))
    scores = {"oracle_single": up, "oracle_base": up, "second_single": down, "second_base": up}
    rows, summary = run(job_of(tmp_path, scores))
    assert [(r["opponent"], r["judge"], r["win_rate"] > 0.5) for r in rows] == [
        ("single", "oracle", True),
        ("single", "second", False),
        ("base", "oracle", True),
        ("base", "second", True),
    ]
    assert summary["alarms"] == ["single"]


def test_a_judge_that_saw_every_prompt_says_nothing(tmp_path: Path) -> None:
    up, seen = parts(np.full(24, 2.0)), parts(np.full(24, 2.0), trained_on=tuple(IDS))
    scores = {"oracle_previous": up, "second_previous": seen, "oracle_base": seen, "second_base": up}
    rows, summary = run(job_of(tmp_path, scores))
    assert rows[1] == {
        "opponent": "previous",
        "judge": "second",
        "win_rate": None,
        "low": None,
        "high": None,
        "n": 0,
        "dropped": 24,
        "informative": False,
    }
    assert summary["alarm"] is False


def test_a_logit_that_is_not_finite_names_part_and_row(tmp_path: Path) -> None:
    logits = np.zeros(24)
    logits[5] = np.nan  # p5 lies in the second part
    bad = parts(logits)
    job = job_of(tmp_path, {f"{j}_{o}": bad for j in ("oracle", "second") for o in ("previous", "base")})
    with refused(DataError, "part-00001", "row 'p5'", "oracle logit"):
        run(job)


def test_held_out_prompts_that_the_other_policy_did_not_answer_are_counted(tmp_path: Path) -> None:
    whole, half = parts(np.full(24, 2.0)), [parts(np.full(24, 2.0))[0]]
    scores = {f"{j}_{o}": half if o == "base" else whole for j in ("oracle", "second") for o in ("previous", "base")}
    rows, _ = run(job_of(tmp_path, scores))
    assert [(row["opponent"], row["n"], row["dropped"]) for row in rows[1:3]] == [("previous", 24, 0), ("base", 12, 12)]
    assert rows[2]["win_rate"] == pytest.approx(rows[0]["win_rate"])


def test_scores_of_other_prompts_are_refused(tmp_path: Path) -> None:
    others = [pa.Table.from_pylist([score_row("q0", 1.0)])]
    job = job_of(tmp_path, {f"{j}_{o}": others for j in ("oracle", "second") for o in ("previous", "base")})
    with refused(DataError, "oracle_previous"):
        run(job)


def test_configuration_is_checked() -> None:
    with refused(ConfigError, "evaluate.resamples=0"):
        load(["hardware=cpu", "evaluate.resamples=0"])
    with refused(ConfigError, "evaluate.confidence=95"):
        load(["hardware=cpu", "evaluate.confidence=95"])
