"""What a study shows, in sentences. Where no difference is detectable they say so, and what would be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from scripts.study.compare import Comparison, Judged
from sparring.pipeline.report.comparison import by_chance, interval
from sparring.pipeline.report.judging import JUDGES
from sparring.stages.evaluate.bootstrap import Estimate, alarm, detectable_of, informative, outcome


def verdicts(last: Sequence[Judged], confidence: float) -> list[str]:
    """Return lines for each arm, of the last iteration: against the base, then against other arms, by each judge."""
    return [line for arm in (last[0].arms if last else ()) for line in _verdict(arm, last, confidence)]


def _verdict(arm: str, last: Sequence[Judged], confidence: float) -> Iterable[str]:
    for one in last:
        said = [against_base(one.arms[arm], confidence), *(against(c) for c in one.comparisons if c.arm == arm)]
        yield f"**{arm}**, iteration {one.iteration}, {JUDGES[one.judge]}: {'; '.join(said)}."
    by_judge = {one.judge: one.arms[arm] for one in last}
    if alarm(by_judge["oracle"].low, by_judge["second"].mean):
        yield f"**{arm}**: ALARM, the oracle rises while the second judge falls; the oracle may be gamed."


def against_base(rate: Estimate, confidence: float) -> str:
    """Say whether an arm beats the base."""
    if not rate.n:
        return "no held-out prompt is left that did not train this judge"
    if not informative(rate.low, rate.high):
        return f"not to be told from the base, {interval(rate)}"
    least = detectable_of(rate.low, rate.high, confidence)
    finding = outcome(replace(rate, mean=rate.mean - 0.5, low=rate.low - 0.5, high=rate.high - 0.5), least)
    if finding in ("better", "worse"):
        return f"{finding} than the base, {interval(rate)}"
    return f"no difference from the base is detectable, {interval(rate)}: it takes more than {least:.3f}"


def against(one: Comparison) -> str:
    """Say what a comparison shows."""
    shown = f"{interval(one.difference, signed=True)} on {one.difference.n} prompts{_seeds(one.by_seed)}"
    match one.finding:
        case "better" | "worse":
            return f"{one.finding} than {one.than}, {shown}"
        case "luck":
            return f"no difference from {one.than} is shown: seeds of one arm alone differ as much, {shown}"
        case "none":
            return (
                f"no difference from {one.than} is detectable, {shown}: it takes more than {one.detectable:.3f} and an "
                "interval without 0"
            )
    return f"no prompt in common with {one.than}, or no more than one"


def _seeds(by_seed: Sequence[float]) -> str:
    return f" (by seed: {', '.join(f'{d:+.3f}' for d in by_seed)})" if len(by_seed) > 1 else ""


def limits(last: Sequence[Judged], confidence: float) -> list[str]:
    """Return what the intervals do not cover."""
    lines = []
    count = sum(len(one.comparisons) for one in last)
    if count:
        lines.append(by_chance(count, confidence))
    if all(one.seed_sd is None for one in last):
        return [*lines, "One seed an arm: nothing is known of how another training would have come out."]
    return lines + [_of_seeds(one, one.seed_sd) for one in last if one.seed_sd is not None]


def _of_seeds(one: Judged, deviation: float) -> str:
    return (
        f"By the {JUDGES[one.judge]}: the win rates of one arm's seeds have a standard deviation of "
        f"{deviation:.3f}, which the intervals over prompts do not hold. Seeds alone make differences of up to "
        f"{max((c.luck for c in one.comparisons), default=0.0):.3f}; one that is smaller, or that has another sign "
        "under another seed, is not counted as found."
    )
