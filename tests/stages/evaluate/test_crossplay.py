"""The game of a set of policies: matrix, cycles, exploitability and equilibrium by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.stages.evaluate import crossplay
from sparring.stages.evaluate.config import CROSSPLAY
from sparring.stages.evaluate.crossplay import CROSSPLAY_SCHEMA, Crossplay, finish
from sparring.stages.evaluate.stage import shards
from tests import settings
from tests.artifacts import as_input, as_job, run_step

ROCK = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
LADDER = np.array([[0.5, 0.4, 0.2], [0.6, 0.5, 0.3], [0.8, 0.7, 0.5]])
PAIRS = [(1, 0), (2, 0), (2, 1)]


def test_a_matrix_is_mirrored_and_so_are_its_intervals() -> None:
    wins = crossplay.matrix(3, PAIRS, [0.6, 0.8, 0.7], [0.6, 0.8, 0.7])
    np.testing.assert_allclose(wins, LADDER)
    lows = crossplay.matrix(3, PAIRS, [0.5, 0.7, 0.6], [0.65, 0.9, 0.8])
    assert lows[2, 0] == 0.7 and lows[0, 2] == pytest.approx(0.1) and lows[1, 1] == 0.5
    assert np.isnan(crossplay.matrix(3, PAIRS[:1], [0.6], [0.6])[2, 0])


def test_rock_paper_scissors_by_hand() -> None:
    assert crossplay.cycle(crossplay.beats(ROCK)) == [0, 1, 2]
    exploited, by = crossplay.exploitability(ROCK)
    np.testing.assert_allclose(exploited, [0.4, 0.4, 0.4])
    assert by.tolist() == [2, 0, 1]
    mixture = crossplay.equilibrium(ROCK)
    assert mixture is not None
    np.testing.assert_allclose(mixture, [1 / 3] * 3, atol=1e-9)
    assert crossplay.mixed_exploitability(ROCK, mixture) == pytest.approx(0, abs=1e-9)
    assert crossplay.duality_gap(ROCK, mixture) == pytest.approx(0, abs=1e-9)
    half = np.array([0.5, 0.5, 0.0])  # rock and paper: rock wins .7 against it, scissors .5 and paper .3
    assert crossplay.mixed_exploitability(ROCK, half) == pytest.approx(0.2)
    assert crossplay.duality_gap(ROCK, half) == pytest.approx(0.4)


def test_a_ladder_is_no_cycle_and_its_top_is_the_equilibrium() -> None:
    assert crossplay.cycle(crossplay.beats(LADDER)) == []
    exploited, by = crossplay.exploitability(LADDER)
    np.testing.assert_allclose(exploited, [0.3, 0.2, 0.0])
    assert by.tolist() == [2, 2, 2]
    mixture = crossplay.equilibrium(LADDER)
    assert mixture is not None and mixture.tolist() == pytest.approx([0, 0, 1], abs=1e-9)
    assert crossplay.mixed_exploitability(LADDER, np.full(3, 1 / 3)) == pytest.approx(0.5 / 3)  # (.8 + .7 + .5)/3 - 1/2


def test_one_policy_alone() -> None:
    wins = crossplay.matrix(1, [], [], [])
    assert crossplay.cycle(crossplay.beats(wins)) == [] and crossplay.exploitability(wins)[0].tolist() == [0.0]
    mixture = crossplay.equilibrium(wins)
    assert mixture is not None and mixture.tolist() == pytest.approx([1.0])


def test_what_was_not_played_is_not_guessed() -> None:
    wins = crossplay.matrix(3, PAIRS[:2], [0.6, 0.8], [0.6, 0.8])
    exploited, _ = crossplay.exploitability(wins)
    np.testing.assert_allclose(exploited, [0.3, 0.0, 0.0])
    assert crossplay.cycle(crossplay.beats(wins)) == []
    assert crossplay.equilibrium(wins) is None


def test_the_shortest_cycle_is_found_in_a_larger_one() -> None:
    beaten = np.zeros((5, 5), dtype=bool)
    for i, j in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (3, 1)):
        beaten[i, j] = True
    assert crossplay.cycle(beaten) == [1, 2, 3]


@given(st.integers(1, 7), st.integers(0, 10_000))
def test_no_policy_beats_the_equilibrium(n: int, seed: int) -> None:
    above = np.triu(np.random.default_rng(seed).random((n, n)), 1)
    wins = above + np.tril(1 - above.T, -1) + 0.5 * np.eye(n)
    mixture = crossplay.equilibrium(wins)
    assert mixture is not None and mixture.min() >= 0 and mixture.sum() == pytest.approx(1)
    assert crossplay.mixed_exploitability(wins, mixture) == pytest.approx(0, abs=1e-7)
    assert crossplay.duality_gap(wins, mixture) == pytest.approx(0, abs=1e-7)


IDS = [f"p{i}" for i in range(24)]


def scores(rate: float, spread: float = 0.1, skip: tuple[str, ...] = (), trained_on: bool = False) -> list[pa.Table]:
    """Versus scores whose win rates alternate around `rate`; each judged prompt has one response a side."""
    rows = []
    for place, row_id in enumerate(i for i in IDS if i not in skip):
        p = rate + (spread if place % 2 else -spread)
        logit = float(np.log(p / (1 - p)))
        row: dict[str, Any] = {"id": row_id, "n_left": 1, "n_right": 1, "trained_on": trained_on}
        rows.append({**row, "logits": [logit], "swapped": [-logit]})
    return [pa.Table.from_pylist(rows[:12]), pa.Table.from_pylist(rows[12:])]


def run(folder: Path, tables: dict[str, list[pa.Table]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    inputs = [as_input(role, folder / role, parts) for role, parts in tables.items()]
    job = as_job(CROSSPLAY, settings.evaluate(resamples=500), inputs, folder)
    (table,), _, summary = run_step(job, Crossplay(job), shards, finish)
    assert table.schema == CROSSPLAY_SCHEMA
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    return table.to_pylist(), summary


def test_the_step_tells_a_cycle_beyond_doubt_from_one_by_point_estimate(tmp_path: Path) -> None:
    tables = {
        "oracle_01_00": scores(0.7), "oracle_02_00": scores(0.3), "oracle_02_01": scores(0.7),
        "second_01_00": scores(0.7), "second_02_00": scores(0.49, 0.4), "second_02_01": scores(0.7),
    }  # fmt: skip
    rows, summary = run(tmp_path, tables)
    assert [(r["judge"], r["policy"], r["opponent"], r["n"]) for r in rows[:3]] == [
        ("oracle", 1, 0, 24),
        ("oracle", 2, 0, 24),
        ("oracle", 2, 1, 24),
    ]
    oracle, second = summary["judges"]["oracle"], summary["judges"]["second"]
    assert summary["policies"] == 3 and oracle["win_rates"][0][2] == pytest.approx(0.7)
    assert oracle["cycle"] == oracle["cycle_beyond_doubt"] == [0, 2, 1]
    assert second["cycle"] == [0, 2, 1] and second["cycle_beyond_doubt"] == []
    assert oracle["exploitability"] == pytest.approx([0.2] * 3) and oracle["exploited_by"] == [1, 2, 0]
    assert oracle["mixture"] == pytest.approx([1 / 3] * 3) and oracle["duality_gap"] == pytest.approx(0, abs=1e-9)
    assert oracle["low"][0][1] == pytest.approx(1 - oracle["high"][1][0])


def test_prompts_that_one_of_two_did_not_answer_count_for_the_others(tmp_path: Path) -> None:
    names = [f"{judge}_{i:02d}_{j:02d}" for judge in ("oracle", "second") for i, j in PAIRS]
    tables = {name: scores(0.7) for name in names}
    tables["oracle_02_01"] = scores(0.7, skip=("p0", "p1"))
    tables["second_02_01"] = scores(0.7, trained_on=True)
    rows, summary = run(tmp_path, tables)
    assert [row["n"] for row in rows] == [24, 24, 22, 24, 24, 0]
    second = summary["judges"]["second"]
    assert second["win_rates"][2][1] is None and second["mixture"] is None and second["duality_gap"] is None
    assert second["average_exploitability"] is None and second["exploited_by"][0] in (1, 2)
    assert summary["judges"]["oracle"]["mixture"] == pytest.approx([0, 0, 1])
