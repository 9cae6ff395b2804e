"""Is an oracle fit: every figure against numbers worked by hand, the bootstrap, each verdict by an oracle made so."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.stats import spearmanr

from sparring.stages.annotate import fitness
from sparring.stages.annotate.fitness import (
    BLOCK,
    RESAMPLES,
    accuracy_figure,
    blocks,
    calibration_error,
    draws,
    estimates,
    figures,
    interval,
    mean,
    of_all,
    rank_correlation,
    verdict,
)


class Pair(NamedTuple):
    chosen: str
    rejected: str


PAIRS = [
    Pair("aaaa", "bb"),  # + 2 characters, length-matched
    Pair("a", "bbb"),  # - 2, length-matched
    Pair("a a a a a a a a a a", "b b"),  # + 16, not length-matched
    Pair("xx", "yy"),  # equal
    Pair("aaa", "bbbb"),  # - 1, length-matched
]
FORTH = np.array([3.0, 1.0, -1.0, 0.0, 4.0])
BACK = np.array([-1.0, 2.0, -3.0, 0.0, 0.0])
# L = (forth - back) / 2 = 2, -1/2, 1, 0, 2: right, wrong, right, tie, right
CUT = np.array([False, True, False, False, False])
GROUPS = np.array([1, 1, 2, 3, 4])


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return figures(PAIRS, FORTH, BACK, CUT, GROUPS, 0)


@pytest.mark.parametrize(
    ("name", "value", "pairs", "prompts"),
    [
        ("accuracy", 3.5 / 5, 5, 4),
        ("length_matched", 2.5 / 4, 4, 3),
        ("longer_wins", 2.5 / 5, 5, 4),
        ("longer_wins_length_matched", 1.5 / 4, 4, 3),
        ("accuracy_over_longer_wins", 0.2, 5, 4),
        ("accuracy_over_shorter_wins", 0.2, 5, 4),
        ("length_matched_over_longer_wins", 0.25, 4, 3),
        ("length_matched_over_shorter_wins", 0.0, 4, 3),
        ("prefers_longer", 3 / 4, 4, 3),
        ("label_longer", 2 / 4, 4, 3),
        ("leans_longer", 1 / 4, 4, 3),
        # ranks of L less 3: 1.5, -2, 0, -1, 1.5; of the difference in length: 1, -2, 2, 0, -1
        ("length_logit_spearman", 4 / np.sqrt(9.5 * 10), 5, 4),
        ("position_disagreement", 2 / 5, 5, 4),
        ("first_wins", (0.5 + 1 + 0 + 0.5 + 0.75) / 5, 5, 4),
        ("first_logit", (1 + 1.5 - 2 + 0 + 2) / 5, 5, 4),
        ("abs_logit", 5.5 / 5, 5, 4),
        ("ties", 1 / 5, 5, 4),
        # P = .880797, .377541, .731059, .5, .880797
        ("log_loss", (2 * 0.126928 + 0.974077 + 0.313262 + 0.693147) / 5, 5, 4),
        ("brier", (2 * 0.014209 + 0.387456 + 0.072329 + 0.25) / 5, 5, 4),
        # bins of 2, 1, 1 and 1 pairs: (2 x .119203 + .622459 + .268941 + 0) / 5
        ("ece", (2 * 0.119203 + 0.622459 + 0.268941) / 5, 5, 4),
        ("overconfidence", (2 * 0.880797 + 0.622459 + 0.731059 + 0.5) / 5 - 0.7, 5, 4),
        ("truncated", 1 / 5, 5, 4),
    ],
)
def test_a_figure(card: dict[str, Any], name: str, value: float, pairs: int, prompts: int) -> None:
    assert card[name] == pytest.approx(value, abs=1.1e-6)  # six digits are kept
    assert (card[f"{name}_pairs"], card[f"{name}_prompts"]) == (pairs, prompts)
    assert card[f"{name}_low"] <= card[name] <= card[f"{name}_high"]


def test_the_table_above_is_complete(card: dict[str, Any]) -> None:
    names = {name.removesuffix("_low") for name in card if name.endswith("_low")}
    (marks,) = (mark for mark in test_a_figure.pytestmark if mark.name == "parametrize")
    assert names == {row[0] for row in marks.args[1]}


def test_the_other_orientation_turns_every_sign() -> None:
    swapped = [Pair(pair.rejected, pair.chosen) for pair in PAIRS]
    turned, card = figures(swapped, BACK, FORTH, CUT, GROUPS, 0), figures(PAIRS, FORTH, BACK, CUT, GROUPS, 0)
    for name in ("accuracy", "length_matched", "longer_wins", "label_longer"):
        assert turned[name] == pytest.approx(1 - card[name])
    for name in ("prefers_longer", "length_logit_spearman", "position_disagreement", "first_wins", "first_logit"):
        assert turned[name] == pytest.approx(card[name])


def test_a_figure_of_no_pair_is_left_out() -> None:
    pairs = [Pair("a a a a", "bbbbbbb")] * 3
    card = figures(pairs, np.ones(3), -np.ones(3), np.zeros(3, dtype=bool), np.arange(3), 0)
    gone = ("length_matched", "spearman", "prefers_longer", "label_longer", "leans_longer")
    assert not [name for name in card if any(word in name for word in gone)]
    assert card["accuracy"] == 1.0 and card["longer_wins"] == 0.5


def test_blocks_are_one_drawing() -> None:
    groups = np.array([5, 5, 2, 9, 9, 9, 7])
    names, member = np.unique(groups, return_inverse=True)
    at_once = np.random.default_rng(3).multinomial(len(names), np.full(len(names), 0.25), size=RESAMPLES)[:, member]
    assert np.array_equal(draws(groups, 3), at_once)
    assert max(len(block) for block in blocks(groups, 3)) == BLOCK < RESAMPLES


def test_prompts_are_drawn_not_pairs() -> None:
    """40 prompts of 10 pairs that are all right or all wrong: the interval is that of 40 draws, not of 400."""
    right = np.repeat([1.0, 0.0], [240, 160])
    card = accuracy_figure("x", right, np.arange(400) // 10, 0)
    half = 1.96 * np.sqrt(0.6 * 0.4 / 40)
    assert (card["x_low"], card["x_high"]) == pytest.approx((0.6 - half, 0.6 + half), abs=0.02)


def test_a_difference_is_paired() -> None:
    """An oracle that is the rule "longer wins": each has its interval, their difference has none."""
    pairs = [Pair("a" * n, "bbbb") for n in (2, 6) * 40]
    logits = fitness.longer(pairs)
    card = figures(pairs, logits, -logits, np.zeros(80, dtype=bool), np.arange(80), 0)
    assert card["accuracy_high"] - card["accuracy_low"] > 0.15
    assert [card[f"accuracy_over_longer_wins{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]
    assert card["leans_longer"] == 0.5 and card["length_logit_spearman"] == 1.0


def test_rank_correlation_is_spearmans_of_what_was_drawn() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 6, 40).astype(float), random.normal(size=40)
    times = random.integers(0, 4, (5, 40)).astype(float)
    statistic = rank_correlation(a, b + a)
    expected = [spearmanr(*(np.repeat(x, row.astype(int)) for x in (a, b + a))).statistic for row in times]
    np.testing.assert_allclose(statistic(times), expected, atol=1e-12)
    assert of_all(statistic, 40) == pytest.approx(spearmanr(a, b + a).statistic, abs=1e-12)
    assert np.isnan(rank_correlation(np.full(40, 0.1), b)(times)).all()


def test_mean_counts_what_counts() -> None:
    statistic = mean(np.array([1.0, 2.0, np.nan]), np.array([True, True, False]))
    np.testing.assert_allclose(statistic(np.array([[1.0, 3.0, 5.0], [0.0, 0.0, 1.0]])), [7 / 4, np.nan])


def test_calibration_error_of_what_was_drawn() -> None:
    statistic = calibration_error(np.array([0.5, 0.51, 0.99, 1.0]), np.array([1.0, 0.0, 1.0, 0.0]))
    # the first bin: right .5, confidence .505; the last: right .5, confidence .995
    assert of_all(statistic, 4) == pytest.approx(0.5 * 0.005 + 0.5 * 0.495)
    assert statistic(np.array([[0.0, 0.0, 0.0, 2.0]]))[0] == pytest.approx(1.0)


def test_estimates_of_no_pairs() -> None:
    assert estimates({"x": (mean(np.zeros(0), np.zeros(0, bool)), np.zeros(0, bool))}, np.zeros(0), 0) == {}


# Verdicts. Responses of 20 words; each word of `more` is one longer than the other's.


def oracle(
    right: np.ndarray, *, more: np.ndarray | None = None, size: float = 1.0, first: float = 0.0, cut: float = 0.0
) -> dict[str, Any]:
    """The card of an oracle that is right where said, with logits of ±size, `first` for being shown first."""
    n = len(right)
    more = np.tile([3, -3], n)[:n] if more is None else more
    pairs = [Pair("w" * (30 + d) + " w" * 19, "w" * 30 + " w" * 19) for d in more]
    logits = np.where(right, size, -size)
    truncated = np.arange(n) < cut * n
    return figures(pairs, logits + first, -logits + first, truncated, np.arange(n), 0)


def rights(n: int, share: float) -> np.ndarray:
    return np.random.default_rng(1).permutation(n) < share * n


@pytest.mark.parametrize(
    ("card", "fit", "said"),
    [
        (oracle(rights(400, 0.7), size=0.9), True, "fit: accuracy 0.700 ["),
        (oracle(rights(29, 1.0)), False, "too few prompts to judge by: 29, give pairs of 30 or more"),
        (oracle(rights(100, 0.5)), False, "not informative: the interval of its accuracy contains 1/2, 0.500 ["),
        (oracle(rights(200, 0.3)), False, "worse than chance: accuracy 0.300 ["),
        (
            oracle(rights(100, 0.7), more=np.where(rights(100, 0.7), 3, -3), size=0.9),
            False,
            "no better than 'longer wins' on length-matched pairs: +0.000 [+0.000, +0.000] over it, 100 pairs",
        ),
        (
            oracle(rights(100, 0.7), more=np.where(rights(100, 0.7), -3, 3), size=0.9),
            False,
            "no better than 'shorter wins' on length-matched pairs",
        ),
        (
            oracle(rights(100, 0.62), size=0.5),
            False,
            "not shown to be better than 'longer wins' on length-matched pairs: +0.120 [-0.",
        ),
        (
            oracle(rights(400, 0.7), size=0.9, first=2.0),
            True,
            "; strong position bias: the winner changes with the order in 1.000 [1.000, 1.000] of the pairs, the first "
            "shown wins 1.000 [1.000, 1.000] of the duels",
        ),
        (oracle(rights(400, 0.7), size=6.0), True, "; P is overconfident: confidence - accuracy = +0.298 [+0."),
        (oracle(rights(400, 0.9), size=0.1), True, "; P is underconfident: confidence - accuracy = -0.375 [-0."),
        (oracle(rights(400, 0.7), size=0.9, cut=0.5), True, "; it reads 0.500 [0.45"),
    ],
)
def test_a_verdict(card: dict[str, Any], fit: bool, said: str) -> None:
    found, text = verdict(card)
    assert found is fit and said in text, text
    assert text.startswith("fit") is fit
    assert text.startswith("fit, with care: accuracy") is ("; " in text and fit)


def test_a_lean_to_length_is_said() -> None:
    """Right on all of the 300 whose chosen response is longer, and on 200 of the 300 where it is not."""
    more, right = np.repeat([3, -3], 300), np.arange(600) < 500
    for sign, word in ((1, "more"), (-1, "less")):
        fit, text = verdict(oracle(right, more=sign * more, size=1.5))
        shares = (400 / 600, 0.5) if sign > 0 else (200 / 600, 0.5)
        assert fit
        assert (
            f"it prefers the longer response {word} often than the label: {shares[0]:.3f}, not {shares[1]:.3f}" in text
        )


def test_where_too_few_are_length_matched_all_pairs_say_it() -> None:
    right = rights(300, 0.7)
    pairs = [Pair("w " * (40 if i % 2 else 5), "w " * (5 if i % 2 else 40)) for i in range(300)]
    logits = np.where(right, 0.9, -0.9)
    card = figures(pairs, logits, -logits, np.zeros(300, dtype=bool), np.arange(300), 0)
    assert "length_matched" not in card
    fit, text = verdict(card)
    assert fit and text.startswith(f"fit: accuracy {interval(card, 'accuracy')}, +0.200 [+0.")
    assert text.endswith("over 'longer wins' on all pairs")
