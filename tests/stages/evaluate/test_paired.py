"""Differences of two policies, prompt by prompt, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparring.stages.evaluate.bootstrap import (
    Bootstrap,
    Estimate,
    aligned,
    detectable,
    detectable_of,
    difference,
    estimates,
    outcome,
)

SETTINGS = Bootstrap(resamples=400, confidence=0.95)


def test_a_difference_is_taken_on_each_prompt_that_both_have() -> None:
    apart = difference({"x": 0.6, "y": 0.5, "z": 0.9}, {"x": 0.4, "y": 0.55, "other": 0.1})
    assert apart == pytest.approx({"x": 0.2, "y": -0.05})
    (one,) = estimates([apart], SETTINGS)
    assert one.mean == pytest.approx(0.075) and one.n == 2
    assert (one.low, one.high) == pytest.approx((-0.05, 0.2)), "half of all draws of two prompts are one prompt twice"


def test_columns_are_aligned_by_prompt() -> None:
    values = aligned([{"b": 0.2, "a": 0.1}, {"c": 0.3, "b": 0.4}])
    expected = [[0.1, np.nan], [0.2, 0.4], [np.nan, 0.3]]
    assert np.array_equal(values, np.array(expected), equal_nan=True)
    assert aligned([{}, {}]).shape == (0, 2)


def test_prompts_vary_by_far_more_than_policies_and_that_cancels_out() -> None:
    easy = {f"p{i}": i / 40 for i in range(40)}
    harder = {prompt: rate - 0.01 for prompt, rate in easy.items()}
    rate, apart = estimates([easy, difference(easy, harder)], SETTINGS)
    assert rate.high - rate.low > 0.15
    assert (apart.mean, apart.low, apart.high) == pytest.approx((0.01, 0.01, 0.01)) and outcome(apart, 0.0) == "better"
    (mirrored,) = estimates([difference(harder, easy)], SETTINGS)
    assert outcome(mirrored, 0.0) == "worse"


def test_without_a_prompt_in_common_there_is_no_estimate() -> None:
    (one,) = estimates([difference({"x": 0.6}, {"y": 0.4})], SETTINGS)
    assert math.isnan(one.mean) and math.isnan(one.low) and one.n == 0 and outcome(one, 0.0) == "unknown"


@pytest.mark.parametrize(
    ("mean", "low", "high", "n", "said"),
    [
        (0.02, 0.01, 0.03, 40, "better"),
        (-0.02, -0.03, -0.01, 40, "worse"),
        (0.012, 0.002, 0.022, 40, "none"),
        (-0.012, -0.022, -0.002, 40, "none"),
        (0.02, -0.01, 0.05, 40, "none"),
        (0.0, 0.0, 0.0, 40, "none"),
        (1e-16, 1e-17, 2e-16, 40, "none"),
        (0.3, 0.3, 0.3, 1, "unknown"),
    ],
)
def test_what_an_estimate_says(mean: float, low: float, high: float, n: int, said: str) -> None:
    """The least effect that intervals of this width detect is 0.0143: a smaller one is none, whatever its interval."""
    assert outcome(Estimate(mean=mean, low=low, high=high, n=n), 0.0143 if n > 1 else 0.0) == said


def test_the_minimum_detectable_effect_by_hand() -> None:
    differences = [0.1, -0.1, 0.3, 0.1]  # mean 0.1, deviations 0, -0.2, 0.2, 0: s^2 = 0.08 / 3
    error = math.sqrt(0.08 / 3) / 2
    assert detectable(differences, 0.95) == pytest.approx((1.959964 + 0.841621) * error, rel=1e-6)
    assert detectable(differences, 0.95, power=0.5) == pytest.approx(1.959964 * error, rel=1e-6)
    assert math.isnan(detectable([0.1], 0.95))


def test_the_detectable_effect_of_an_interval_is_that_of_its_standard_error() -> None:
    differences = np.random.default_rng(0).normal(0.0, 0.1, 400)
    (one,) = estimates([{f"p{i}": d for i, d in enumerate(differences)}], Bootstrap(resamples=4000, confidence=0.95))
    assert detectable_of(one.low, one.high, 0.95) == pytest.approx(detectable(differences.tolist(), 0.95), rel=0.05)
    half = 1.959964 * 0.01
    assert detectable_of(0.5 - half, 0.5 + half, 0.95) == pytest.approx((1.959964 + 0.841621) * 0.01, rel=1e-6)
    assert detectable_of(0.5 - half, 0.5 + half, 0.95, power=0.5) == pytest.approx(half, rel=1e-6)
