"""What a study shows, in sentences. Where no difference is detectable they say so, and what would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scripts.study.compare import ArmDifference, ArmsAtIteration
from sparring.pipeline.report.comparison import by_chance, interval
from sparring.pipeline.report.judging import JUDGES
from sparring.stages.evaluate.bootstrap import Estimate, alarm, detectable_of, informative, outcome


def verdicts(last: Sequence[ArmsAtIteration], confidence: float) -> list[str]:
    """Return lines for each arm, of the last iteration: against the base, then against other arms, by each judge."""
    lines = []
    for arm in last[0].arms if last else ():
        for one in last:
            found = [against_base(one.arms[arm], confidence), *(against(c) for c in one.comparisons if c.arm == arm)]
            lines.append(f"**{arm}**, iteration {one.iteration}, {JUDGES[one.judge]}: {'; '.join(found)}.")
        by_judge = {one.judge: one.arms[arm] for one in last}
        if alarm(by_judge["oracle"].low, by_judge["second"].mean):
            lines.append(f"**{arm}**: ALARM, the oracle rises while the second judge falls; the oracle may be gamed.")
    return lines


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


def against(one: ArmDifference) -> str:
    """Say what a comparison shows."""
    shown = f"{interval(one.difference, signed=True)} on {one.difference.n} prompts"
    if len(one.by_seed) > 1:
        shown += f" (by seed: {', '.join(f'{d:+.3f}' for d in one.by_seed)})"
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


def limits(last: Sequence[ArmsAtIteration], confidence: float) -> list[str]:
    """Return what the intervals do not cover."""
    lines = []
    count = sum(len(one.comparisons) for one in last)
    if count:
        lines.append(by_chance(count, confidence))
    if all(one.seed_sd is None for one in last):
        return [*lines, "One seed for each arm: the variance between seeds is unknown."]
    for one in last:
        if one.seed_sd is None:
            continue
        largest = max((c.luck for c in one.comparisons), default=0.0)
        lines.append(
            f"By the {JUDGES[one.judge]}: the win rates of one arm's seeds have a standard deviation of "
            f"{one.seed_sd:.3f}, which the intervals over prompts do not include. Seeds alone make differences of up "
            f"to {largest:.3f}; a smaller one, or one whose sign changes with the seed, does not count as a difference."
        )
    return lines
