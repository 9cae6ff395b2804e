"""Held-out win rates and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from sparring.stages.evaluate.bootstrap import alarm, informative, paired_bootstrap, prompt_win_rate


def test_prompt_win_rate_debiases_and_averages_probabilities() -> None:
    logits, swapped = np.array([3.0, 1.0]), np.array([1.0, 1.0])  # L = 1, 0
    assert prompt_win_rate(logits, swapped) == pytest.approx((0.7310585786300049 + 0.5) / 2, abs=1e-15)
    assert prompt_win_rate(swapped, logits) == pytest.approx((0.2689414213699951 + 0.5) / 2, abs=1e-15)


def test_mean_and_interval_of_a_known_sample() -> None:
    values = np.array([[0.0], [1.0]])  # a resample's mean is 0, 1/2 or 1 with chance 1/4, 1/2, 1/4
    mean, low, high = paired_bootstrap(values, 2000, 0.4, seed=0)
    assert (mean[0], low[0], high[0]) == (0.5, 0.5, 0.5)
    _, low, high = paired_bootstrap(values, 2000, 0.8, seed=0)
    assert (low[0], high[0]) == (0.0, 1.0)


def test_width_follows_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, size=(400, 1))
    _, low, high = paired_bootstrap(values, 4000, 0.95, seed=2)
    expected = 2 * 1.96 * values.std() / np.sqrt(len(values))
    assert high[0] - low[0] == pytest.approx(expected, rel=0.06)


def test_coverage() -> None:
    """95% intervals of 400 samples of 64 prompts hold the truth, .50: binomial sd 1.1%, a bit narrow."""
    rng = np.random.default_rng(3)
    values = rng.beta(2.0, 2.0, size=(64, 400))
    held = 0
    for column in values.T:
        _, low, high = paired_bootstrap(column[:, None], 400, 0.95, seed=int(rng.integers(1 << 30)))
        held += low[0] <= 0.5 <= high[0]
    assert 0.90 <= held / 400 <= 0.98


def test_comparisons_share_their_resamples() -> None:
    column = np.random.default_rng(4).uniform(size=50)
    mean, low, high = paired_bootstrap(np.stack([column, column, 1 - column], axis=1), 500, 0.9, seed=5)
    assert (mean[0], low[0], high[0]) == (mean[1], low[1], high[1])
    assert (1 - low[2], 1 - high[2]) == pytest.approx((high[0], low[0]), abs=1e-12)


def test_seed_decides() -> None:
    values = np.random.default_rng(6).uniform(size=(30, 1))
    one, again, other = (paired_bootstrap(values, 600, 0.95, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_prompts_left_out_count_for_nothing() -> None:
    column = np.array([0.2, np.nan, 0.8, np.nan, 0.8])
    mean, low, high = paired_bootstrap(np.stack([column, np.full(5, np.nan)], axis=1), 500, 0.9, seed=7)
    assert mean[0] == pytest.approx(0.6) and 0.2 - 1e-12 <= low[0] <= 0.6 <= high[0] <= 0.8 + 1e-12
    assert np.isnan([mean[1], low[1], high[1]]).all()


def test_informative_and_alarm() -> None:
    assert informative(0.51, 0.7) and informative(0.2, 0.49)
    assert not informative(0.4, 0.6) and not informative(0.5, 0.6) and not informative(np.nan, np.nan)
    assert not informative(np.nextafter(0.5, 1), 0.6) and not informative(0.4, np.nextafter(0.5, 0))
    assert alarm(0.51, 0.49)
    assert not alarm(0.49, 0.4) and not alarm(0.51, 0.51) and not alarm(0.51, 0.5)
