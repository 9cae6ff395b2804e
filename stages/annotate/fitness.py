"""Is an oracle fit to judge? Figures on labelled pairs, each with its interval, and a verdict in words. Pure numpy.

The input is n pairs (chosen, rejected) and two arrays of raw logits, (n,) float64: `forth` with the chosen response
shown first, `back` with the rejected one shown first; > 0 where the first shown is better. L = (forth - back) / 2 is
> 0 where the oracle prefers the chosen response; P = sigmoid(L) is its probability of winning. A tie is half right.

Every interval is a percentile bootstrap that draws prompts, not pairs, with replacement. All figures of one call use
the same draws, so the interval of a difference is that of paired samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparring.stages.annotate.winrate import debiased_logits, position_disagreement, sigmoid, ties
from sparring.stages.plain import interval_text

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Card = dict[str, Any]
Statistic = Callable[[Array], Array]
"""(m, n), how often each of n pairs is drawn in each of m resamples -> (m,), its value in each; nan: undefined."""

RESAMPLES = 2000
BLOCK = 64
"""Resamples held in memory at once."""
LENGTH_RATIO = 0.87
BINS = 10
"""Of confidence, between 1/2 and 1."""
LEAST_PROMPTS = 30
POSITION_LIMIT, LENGTH_LIMIT, CALIBRATION_LIMIT, TRUNCATED_LIMIT = 0.25, 0.1, 0.1, 0.1
"""See `verdict`."""


class Labelled(Protocol):
    """A pair whose better response is known."""

    @property
    def chosen(self) -> str: ...

    @property
    def rejected(self) -> str: ...


# Pairs


def correct(logits: Array) -> Array:
    """Return 1 where the chosen response has the positive logit, 1/2 at exactly 0, else 0."""
    right: Array = (np.sign(logits) + 1) / 2
    return right


def length_matched(pairs: Sequence[Labelled]) -> Mask:
    """Return (n,) bool: the shorter response has at least 87% of the longer one's words (split at spaces)."""
    words = np.array([sorted((len(p.chosen.split()), len(p.rejected.split()))) for p in pairs]).reshape(-1, 2)
    matched: Mask = words[:, 0] >= LENGTH_RATIO * words[:, 1]
    return matched


def longer(pairs: Sequence[Labelled]) -> Array:
    """Return (n,) characters(chosen) - characters(rejected)."""
    return np.array([float(len(p.chosen) - len(p.rejected)) for p in pairs])


# The bootstrap


def blocks(groups: NDArray[Any], seed: int) -> Iterator[Array]:
    """Yield blocks (up to BLOCK, n), RESAMPLES rows in all: how often each pair occurs when groups are drawn."""
    names, member = np.unique(groups, return_inverse=True)
    random = np.random.default_rng(seed)
    for start in range(0, RESAMPLES, BLOCK):
        size = min(BLOCK, RESAMPLES - start)
        counts = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
        yield counts[:, member].astype(np.float64)


def draws(groups: NDArray[Any], seed: int) -> Array:
    """Return (RESAMPLES, n): how often each row occurs when groups are drawn with replacement."""
    return np.concatenate(list(blocks(groups, seed)))


def figure(name: str, value: float, resampled: Array, groups: NDArray[Any]) -> Card:
    """Return the five entries of a figure; resamples in which it is undefined are ignored."""
    low, high = np.nanquantile(resampled, [0.025, 0.975]) if np.isfinite(resampled).any() else (np.nan, np.nan)
    return {
        name: round(float(value), 6),
        f"{name}_low": round(float(low), 6),
        f"{name}_high": round(float(high), 6),
        f"{name}_pairs": len(groups),
        f"{name}_prompts": len(np.unique(groups)),
    }


def of_all(statistic: Statistic, n: int) -> float:
    """Return a statistic of all n pairs, each once."""
    return float(statistic(np.ones((1, n)))[0])


def estimates(statistics: Mapping[str, tuple[Statistic, Mask]], groups: NDArray[Any], seed: int) -> Card:
    """Return the figures of name -> (statistic, pairs that it counts), without those that are undefined."""
    values = {name: of_all(statistic, len(groups)) for name, (statistic, _) in statistics.items()}
    resampled: dict[str, list[Array]] = {name: [] for name, value in values.items() if np.isfinite(value)}
    for times in blocks(groups, seed) if len(groups) else ():
        for name, drawn in resampled.items():
            drawn.append(statistics[name][0](times))
    card: Card = {}
    for name, drawn in resampled.items():
        card |= figure(name, values[name], np.concatenate(drawn), groups[statistics[name][1]])
    return card


def accuracy_figure(name: str, right: Array, groups: NDArray[Any], seed: int) -> Card:
    """Return mean(right) over pairs with its interval; nothing for no pairs."""
    every = np.ones(len(right), dtype=bool)
    return estimates({name: (mean(right, every), every)}, groups, seed)


# Statistics


def ratio(above: Array, below: Array) -> Array:
    """Return above / below, nan where below is 0."""
    quotient: Array = np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
    return quotient


def mean(values: Array, counted: Mask) -> Statistic:
    """Return sum_i t_i x_i / sum_i t_i over the counted pairs; values x (n,), t the times each is drawn."""
    filled, present = np.where(counted, values, 0.0), counted.astype(np.float64)
    return lambda times: ratio(times @ filled, times @ present)


def rank_correlation(a: Array, b: Array) -> Statistic:
    """Return Spearman's correlation of a and b (n,) over the drawn pairs; ranks of ties are averaged."""

    def statistic(times: Array) -> Array:
        x, y = _centred_ranks(a, times), _centred_ranks(b, times)
        xy, xx, yy = (np.einsum("mn,mn,mn->m", times, p, q) for p, q in ((x, y), (x, x), (y, y)))
        return ratio(xy, np.sqrt(xx * yy))

    return statistic


def calibration_error(confidence: Array, right: Array) -> Statistic:
    """Expected calibration error: sum_b (n_b / n) |mean right_b - mean confidence_b| over BINS equal bins of [1/2, 1].

    confidence: (n,) sigmoid(|L|), P of the winner; right: (n,) whether it is the chosen one. Both orientations of a
    pair give the same, so the bins of [0, 1/2] are the mirror of these. Guo et al., arXiv 1706.04599. Of few pairs
    it is too large by about .4 sqrt(BINS / n): `overconfidence` is the unbiased, signed figure.
    """
    which = np.clip(((confidence - 0.5) * 2 * BINS).astype(int), 0, BINS - 1)
    gap = np.where(which[:, None] == np.arange(BINS), (right - confidence)[:, None], 0.0)
    return lambda times: ratio(np.abs(times @ gap).sum(axis=1), times.sum(axis=1))


def _centred_ranks(x: Array, times: Array) -> Array:
    """Return (m, n) ranks less their mean, where x_i occurs times[:, i] times: exact halves, so a constant gives 0."""
    values, which = np.unique(x, return_inverse=True)
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(len(values)))
    weight = np.add.reduceat(times[:, order], starts, axis=1)
    ranks = np.cumsum(weight, axis=1) - weight / 2
    centred: Array = (ranks - weight.sum(axis=1, keepdims=True) / 2)[:, which]
    return centred


# An oracle's figures


def figures(
    pairs: Sequence[Labelled], forth: Array, back: Array, truncated: Mask, groups: NDArray[Any], seed: int
) -> Card:
    """Return every figure x of an oracle on n pairs as x, x_low, x_high (95%), x_pairs, x_prompts; none of no pairs.

    "Right" is 1, 1/2 or 0 for each pair; the longer response has more characters.
        accuracy, length_matched                mean right; over all, and over length-matched pairs
        longer_wins(_length_matched)            the same of the rule that the longer response is better
        (accuracy, length_matched)_over_longer_wins, _over_shorter_wins     right minus the rule's right, by pair
        prefers_longer, label_longer            shares of the pairs of unequal length; leans_longer: their difference
        length_logit_spearman                   L with characters(chosen) - characters(rejected)
        position_disagreement                   share of pairs whose winner changes with the order
        first_wins, first_logit                 share of duels that the first shown wins; mean (forth + back) / 2
        abs_logit, ties                         mean |L|; share of L = 0
        log_loss, brier                         mean -ln P and (1 - P)^2 of the chosen: .693 and .25 of a blind oracle
        ece, overconfidence                     calibration_error; mean sigmoid(|L|) minus accuracy
        truncated                               share of pairs with a truncated text, in either order

    Args:
        truncated: (n,) bool.
        groups: (n,), equal where the prompt is.
    """
    logits = np.where(ties(forth, back), 0.0, debiased_logits(forth, back))
    right, more = correct(logits), longer(pairs)
    every, matched, unequal = np.ones(len(pairs), dtype=bool), length_matched(pairs), more != 0
    long, prefers = correct(more), correct(logits * np.sign(more))
    means: dict[str, tuple[Array, Mask]] = {}
    for name, suffix, counted in (("accuracy", "", every), ("length_matched", "_length_matched", matched)):
        means[name] = (right, counted)
        means[f"longer_wins{suffix}"] = (long, counted)
        means[f"{name}_over_longer_wins"] = (right - long, counted)
        means[f"{name}_over_shorter_wins"] = (right - (1 - long), counted)
    shares = {"prefers_longer": prefers, "label_longer": long, "leans_longer": prefers - long}
    means |= {name: (values, unequal) for name, values in shares.items()}
    others = {
        "position_disagreement": position_disagreement(forth, back).astype(np.float64),
        "first_wins": (correct(forth) + correct(back)) / 2,
        "first_logit": (forth + back) / 2,
        "truncated": truncated.astype(np.float64),
        "abs_logit": np.abs(logits),
        "ties": (logits == 0).astype(np.float64),
        "log_loss": np.logaddexp(0.0, -logits),
        "brier": sigmoid(-logits) ** 2,
        "overconfidence": sigmoid(np.abs(logits)) - right,
    }
    means |= {name: (values, every) for name, values in others.items()}
    statistics = {name: (mean(values, counted), counted) for name, (values, counted) in means.items()}
    statistics["length_logit_spearman"] = (rank_correlation(logits, more), every)
    statistics["ece"] = (calibration_error(sigmoid(np.abs(logits)), right), every)
    return estimates(statistics, groups, seed)


# In words


def verdict(card: Card) -> tuple[bool, str]:
    """Return whether an oracle is fit to judge such pairs, and why, in one line; card: of `figures`.

    It is not fit, for the first of these reasons that applies:
        the pairs are of fewer than 30 prompts
        the interval of its accuracy contains 1/2, or lies below it
        the interval of its difference from the better rule of length, "longer wins" or "shorter wins", is not above 0:
        on length-matched pairs, or on all pairs where fewer than 30 prompts have a length-matched one
    It is fit, with care, for all of these reasons that apply to the whole interval:
        the winner changes with the order in more than 25% of the pairs
        it prefers the longer response in 10 points more, or fewer, of the pairs than the label does
        its mean confidence is 10 points above, or below, its accuracy: P, on which targets are based, is not calibrated
        more than 10% of the pairs have a truncated text
    """
    objection, cautions = _objection(card), "; ".join(_cautions(card))
    if objection:
        return False, f"{objection}; {cautions}" if cautions else objection
    place, rule = _beyond_length(card)
    fit = f"accuracy {interval(card, 'accuracy')}, {interval(card, place, '+')} over {rule}"
    return True, f"fit, with care: {fit}; {cautions}" if cautions else f"fit: {fit}"


def interval(card: Mapping[str, Any], name: str, sign: str = "") -> str:
    """Return `0.605 [0.553, 0.649]`; sign `+`: of a difference."""
    return interval_text(card[name], card[f"{name}_low"], card[f"{name}_high"], f"{sign}.3f")


def _objection(card: Card) -> str | None:
    prompts, accuracy = card["accuracy_prompts"], interval(card, "accuracy")
    if prompts < LEAST_PROMPTS:
        return f"too few prompts to judge by: {prompts}, give pairs of {LEAST_PROMPTS} or more"
    if card["accuracy_high"] < 0.5:
        return f"worse than chance: accuracy {accuracy}; is chosen the better response in this file?"
    if card["accuracy_low"] <= 0.5:
        return f"not informative: the interval of its accuracy contains 1/2, {accuracy}"
    place, rule = _beyond_length(card)
    if card[f"{place}_low"] <= 0:
        worse = "no better" if card[place] <= 0 else "not shown to be better"
        return f"{worse} than {rule}: {interval(card, place, '+')} over it, {card[f'{place}_pairs']:,} pairs"
    return None


def _beyond_length(card: Card) -> tuple[str, str]:
    """Return the name of the figure that compares an oracle with the better rule of length, and that rule in words."""
    matched = card.get("length_matched_prompts", 0) >= LEAST_PROMPTS
    name, long = ("length_matched", "longer_wins_length_matched") if matched else ("accuracy", "longer_wins")
    rule = "longer" if card[long] >= 0.5 else "shorter"
    return f"{name}_over_{rule}_wins", f"'{rule} wins' on {'length-matched' if matched else 'all'} pairs"


def _cautions(card: Card) -> list[str]:
    cautions = []
    if card["position_disagreement_low"] > POSITION_LIMIT:
        cautions.append(
            f"strong position bias: the winner changes with the order in {interval(card, 'position_disagreement')} of "
            f"the pairs, the first shown wins {interval(card, 'first_wins')} of the duels"
        )
    low, high = card.get("leans_longer_low", 0.0), card.get("leans_longer_high", 0.0)
    if low > LENGTH_LIMIT or high < -LENGTH_LIMIT:
        often = f"{'more' if low > 0 else 'less'} often than the label"
        rates = f"{card['prefers_longer']:.3f}, not {card['label_longer']:.3f}"
        cautions.append(f"it prefers the longer response {often}: {rates}")
    low, high = card["overconfidence_low"], card["overconfidence_high"]
    if low > CALIBRATION_LIMIT or high < -CALIBRATION_LIMIT:
        gap = interval(card, "overconfidence", "+")
        cautions.append(f"P is {'over' if low > 0 else 'under'}confident: confidence - accuracy = {gap}")
    if card["truncated_low"] > TRUNCATED_LIMIT:
        cautions.append(f"it reads {interval(card, 'truncated')} of the pairs cut")
    return cautions
