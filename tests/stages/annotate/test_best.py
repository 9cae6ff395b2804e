"""The step `best`: the first of the best by the oracle's win rate, part for part, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sparring.pipeline.config import load
from sparring.stages.annotate import best, winrate
from sparring.stages.annotate.config import BEST, BestSettings
from sparring.stages.annotate.rows import shards
from sparring.stages.annotate.score import SCORES_SCHEMA
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.sample.stage import SAMPLES_SCHEMA
from sparring.stages.step import Job
from tests.artifacts import as_input, as_job, run_step, samples_table
from tests.refusals import refused

LOGITS = {
    "a": [[0, -1, -2], [1, 0, -3], [2, 3, 0]],  # the last one wins both its duels
    "b": [[0, 0, 0], [0, 0, 0], [0, 0, 0]],  # equals
    "c": [[0, -9, 2], [9, 0, 2], [-2, -2, 0]],
}
TEXTS = {"a": ["a", "bb", "ccc"], "b": ["one", "two", "three"], "c": ["x", "yy", "zzz"]}


def scores(names: str) -> pa.Table:
    rows = [
        {"id": i, "n_left": 3, "n_right": 3, "logits": flat + 1, "swapped": 1 - flat, "trained_on": False}
        for i, flat in ((i, np.array(LOGITS[i], dtype=float).ravel()) for i in names)
    ]
    return pa.Table.from_pylist(rows, schema=SCORES_SCHEMA)


def job_of(folder: Path, *parts: str, judged: tuple[str, ...] = ()) -> Job:
    samples = [samples_table({i: TEXTS[i] for i in names}, capped=[("a", 2), ("b", 1)]) for names in parts]
    made = [scores(names) for names in judged or parts]
    inputs = [as_input("samples", folder / "samples", samples), as_input("scores", folder / "scores", made)]
    return as_job(BEST, BestSettings(win_rate="matrix"), inputs, folder)


def test_the_best_response_of_each_prompt_is_kept(tmp_path: Path) -> None:
    job = job_of(tmp_path, "ab", "c")
    tables, parts, summary = run_step(job, best.Chooser(job), shards, best.finish)
    rows = [row for table in tables for row in table.to_pylist()]
    assert [table.schema for table in tables] == [SAMPLES_SCHEMA] * 2 and [part.rows_in for part in parts] == [2, 1]
    assert [(row["id"], [one["text"] for one in row["responses"]]) for row in rows] == [
        ("a", ["ccc"]),
        ("b", ["one"]),
        ("c", ["yy"]),
    ]
    for row in rows:
        rates = winrate.win_rates(winrate.preference_matrix(np.array(LOGITS[row["id"]], dtype=float)))
        assert TEXTS[row["id"]][int(rates.argmax())] == row["responses"][0]["text"]
    assert summary == {
        "n": 3,
        "prompts": 3,
        "length_mean": pytest.approx((3 + 3 + 2) / 3),
        "cap_rate": pytest.approx(1 / 3),  # the capped one of b was not kept
        "first": pytest.approx(1 / 3),
    }


def test_scores_of_other_prompts_are_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path, "ab", judged=("ac",))
    with refused(DataError, "row 'b'"):
        best.Chooser(job)(shards(job)[0])


def test_an_unknown_win_rate_is_refused() -> None:
    with refused(ConfigError, "win_rate=mean"):
        load(["hardware=cpu", "win_rate=mean"])
