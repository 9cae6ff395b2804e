"""AlpacaEval's win rates: by hand, from the published weights, and fitted anew from published annotations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.stages.evaluate.suites.alpaca import ANNOTATED, GAMED, WEIGHTED, annotated, difficulty, rows
from tests.stages.evaluate.suites.fit import fit
from tests.stages.evaluate.suites.length_control import length_controlled, length_feature, raw_win_rate


def test_raw_by_hand() -> None:
    assert raw_win_rate(np.array([1.0, 2.0, 2.0, 1.5])) == 62.5
    assert raw_win_rate(np.array([0.0, 2.0])) == 75.0, "0 is a draw"
    assert raw_win_rate(np.array([np.nan, 1.25])) == 25.0


def test_a_shorter_model_has_a_positive_feature() -> None:
    found = length_feature(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 4.0]))  # 2, 0, −2: std 2
    assert found == pytest.approx([math.tanh(1), 0.0, -math.tanh(1)])


def test_length_controlled_by_hand() -> None:
    assert length_controlled(0.0, 0.0, np.zeros(3)) == 50.0
    assert length_controlled(math.log(3), 1.0, np.array([0.0, -math.log(3)])) == pytest.approx(62.5)
    assert length_controlled(-2000.0, 0.0, np.zeros(1)) == 0.0, "no overflow"


@pytest.mark.parametrize("model", WEIGHTED)
def test_the_leaderboards_rates_from_its_weights(model: str) -> None:
    (weights,) = (row for row in rows("baseline_gpt4_1106_preview.csv") if row[""] == model)
    theta, psi = (float(weights[name]) for name in ("not_gamed_baseline.astype(float)", "instruction_difficulty"))
    (published,) = (row for row in rows("weighted_alpaca_eval_gpt4_turbo_leaderboard.csv") if row[""] == model)
    found = length_controlled(theta, psi, difficulty())
    assert found == pytest.approx(WEIGHTED[model], abs=1e-6)
    assert found == pytest.approx(float(published["length_controlled_winrate"]), abs=1e-6)


@pytest.mark.parametrize("model", ANNOTATED)
def test_the_leaderboards_rates_from_annotations(model: str) -> None:
    raw, published = ANNOTATED[model]
    given, gamed = annotated(model), rows(GAMED)
    preference = np.array([row["preference"] for row in given])
    assert raw_win_rate(preference) == pytest.approx(raw, abs=1e-9)
    lengths = (np.array([float(len(row[name])) for row in given]) for name in ("output_1", "output_2"))
    tanh, hard, likes = (
        np.array([float(row[name]) for row in gamed])
        for name in ("std_delta_len", "instruction_difficulty", "preference")
    )
    _, psi, theta = fit((length_feature(*lengths), difficulty(), preference - 1), (np.tanh(tanh), hard, likes))
    assert length_controlled(theta, psi, difficulty()) == pytest.approx(published, abs=0.02)
