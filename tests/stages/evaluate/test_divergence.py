"""KL by samples: what it estimates, its interval over prompts, and when it is no KL."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparring.stages.evaluate.bootstrap import Bootstrap, log_ratios, tempered

SETTINGS = Bootstrap(resamples=2000, confidence=0.95)
POLICY, OTHER = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
KL = float((POLICY * np.log(POLICY / OTHER)).sum())


def sampled(probabilities: np.ndarray, prompts: int, k: int, seed: int) -> list[dict[tuple[str, int], float]]:
    """Log-probs under both policies of responses drawn from `probabilities`."""
    drawn = np.random.default_rng(seed).choice(3, size=(prompts, k), p=probabilities)
    return [
        {(f"p{i}", j): float(np.log(p[drawn[i, j]])) for i in range(prompts) for j in range(k)} for p in (POLICY, OTHER)
    ]


def test_by_hand() -> None:
    own = {("x", 0): -1.0, ("x", 1): -2.0, ("y", 0): -3.0, ("z", 0): -9.0}
    other = {("x", 0): -2.0, ("x", 1): -2.5, ("y", 0): -1.0}
    (one,) = log_ratios(own, [other], SETTINGS)
    assert one.mean == pytest.approx((1.0 + 0.5 - 2.0) / 3) and one.n == 2, "over responses, not over prompts' means"
    assert (one.low, one.high) == pytest.approx((-2.0, 0.75)), "prompts are drawn, with all their responses"
    assert math.isnan(log_ratios(own, [{}], SETTINGS)[0].mean)


def test_of_its_own_samples_it_is_kl_and_the_interval_holds_it() -> None:
    """95% intervals of 200 sets of 64 prompts hold KL: binomial sd 1.5%."""
    found = [log_ratios(own, [other], SETTINGS)[0] for own, other in (sampled(POLICY, 64, 1, s) for s in range(200))]
    error = np.std([one.mean for one in found]) / math.sqrt(len(found))
    assert abs(np.mean([one.mean for one in found]) - KL) < 4 * error
    assert 0.89 <= np.mean([one.low <= KL <= one.high for one in found]) <= 0.99


def test_of_tempered_samples_it_is_another_number() -> None:
    cold = POLICY**3 / (POLICY**3).sum()
    own, other = sampled(cold, 2000, 1, 0)
    (one,) = log_ratios(own, [other], SETTINGS)
    assert one.low > KL


def test_the_same_prompts_are_drawn_for_both_policies() -> None:
    own, other = sampled(POLICY, 32, 2, 0)
    one, again = log_ratios(own, [other, other], SETTINGS)
    assert one == again


@pytest.mark.parametrize(
    ("sampling", "is_tempered"),
    [
        ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}, False),
        ({"temperature": 0.7, "top_p": 1.0, "min_p": 0.0}, True),
        ({"temperature": 1.0, "top_p": 0.9, "min_p": 0.0}, True),
        ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.1}, True),
    ],
)
def test_when_it_is_no_kl(sampling: dict[str, float], is_tempered: bool) -> None:
    assert tempered(sampling) == is_tempered
