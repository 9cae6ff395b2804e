"""The answer in words: is the new policy better than the base, by whose judgement, and how sure is that?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.pipeline.report.figures import Figure, Figures
from sparring.pipeline.report.judging import JUDGES, OPPONENTS, win_rate_name
from sparring.pipeline.runs.run_history import Steps

BY_BOTH = {
    "better": "Better than the base, by both judges",
    "worse": "Worse than the base, by both judges",
    "open": "Not informative: neither judge can tell it from the base",
    "": "Not judged",
}
BY_ORACLE = {
    "better": "Better than the base by the oracle",
    "worse": "Worse than the base by the oracle",
    "open": "The oracle cannot tell it from the base",
    "": "Not judged by the oracle",
}
BY_SECOND = {
    "better": "the second judge calls it better",
    "worse": "the second judge calls it worse",
    "open": "the second judge cannot tell",
    "": "not judged by the second judge",
}
"""What a judge says, by the verdict of its win rate."""
ALARM = "Alarm: the oracle rises while the second judge falls"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a report says of a run first."""

    iteration: int
    """The last one that was evaluated; 0 without any."""
    headline: str
    sentences: tuple[str, ...]
    tone: str
    """`good`, `bad`, `open`, or `alarm`: a symbol stands for it, and a colour."""


def answer(iterations: Mapping[int, Steps], figures: Mapping[int, Figures]) -> Answer:
    """Return the answer of a run: of its last evaluated iteration, against the base."""
    evaluated = [t for t, steps in iterations.items() if "evaluate" in steps]
    if not evaluated:
        return Answer(iteration=0, headline="Not evaluated yet", sentences=(), tone="open")
    t = max(evaluated)
    summary = iterations[t]["evaluate"].summary
    rates = {judge: figures[t].get(win_rate_name(judge, "base")) for judge in JUDGES}
    oracle, second = (rate.verdict if rate else "" for rate in rates.values())
    plain, alarms = headline(oracle, second), summary["alarms"]
    sentences = [f"The policy may be gaming the oracle. {plain}."] if alarms else []
    sentences += [rate.sentence for rate in rates.values() if rate]
    sentences.append(f"{100 * summary.get('confidence', 0.95):.0f}% intervals over held-out prompts, not over seeds.")
    best = highest({one: of.get(win_rate_name("second", "base")) for one, of in figures.items()})
    if best and best[0] != t:
        sentences.append(
            f"By the second judge iteration {best[0]} stands highest, by point estimates: {best[1].interval}."
        )
    return Answer(
        iteration=t,
        headline=f"{ALARM}, against {' and '.join(OPPONENTS[one] for one in alarms)}" if alarms else plain,
        sentences=tuple(sentences),
        tone="alarm" if alarms else tone(oracle, second),
    )


def headline(oracle: str, second: str) -> str:
    """Return what the verdicts of both judges come to."""
    return BY_BOTH[oracle] if oracle == second else f"{BY_ORACLE[oracle]}; {BY_SECOND[second]}"


def tone(oracle: str, second: str) -> str:
    """Return good where both judges agree that it is better, bad where one says worse, else open."""
    if "worse" in (oracle, second):
        return "bad"
    return "good" if oracle == second == "better" else "open"


def highest(rates: Mapping[Any, Figure | None]) -> tuple[Any, Figure] | None:
    """Return the key and the win rate of the highest one, None without any."""
    known = {key: rate for key, rate in rates.items() if rate and rate.verdict}
    best = max(known, key=lambda key: float(known[key].value["win_rate"]), default=None)
    return None if best is None else (best, known[best])


def alarms(steps: Steps) -> list[str]:
    """Return a line for each opponent against which only the oracle finds the policy better."""
    opponents = steps["evaluate"].summary["alarms"] if "evaluate" in steps else []
    return [f"ALARM: against {one} the oracle rises while the second judge falls; it may be gamed" for one in opponents]


def highest_arm(last: Sequence[tuple[str, int, Figure | None]]) -> str:
    """Return which arm the second judge puts highest, and how many intervals overlap with its own; '' without any.

    last: label, last evaluated iteration and win rate against the base by the second judge of each arm.
    """
    iterations, rates = {label: t for label, t, _ in last}, {label: rate for label, _, rate in last}
    best = highest(rates)
    if best is None:
        return ""
    label, rate = best
    others = [one.value for name, one in rates.items() if name != label and one and one.verdict]
    overlapping = sum(row["high"] >= rate.value["low"] for row in others)
    stands = f"By the second judge {label} stands highest by point estimate,"
    stands += f" at iteration {iterations[label]}: {rate.interval}."
    if not others:
        return stands
    if len(others) == 1:
        verb = "overlaps" if overlapping else "does not overlap"
        return f"{stands} The interval of the other one {verb} with it."
    return f"{stands} Intervals that overlap with it: {overlapping} of the {len(others)} others'."
