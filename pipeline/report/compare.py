"""The arms of a report against the first of them: differences of their win rates against the base, paired by prompt.

Read from the held-out scores, at the last iteration that both arms have evaluated, by both judges. Arms that were not
measured alike are not compared, and why is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparring.pipeline.artifact import Manifest
from sparring.pipeline.report.comparable import reason, redone
from sparring.pipeline.run_history import RunHistory, labels
from sparring.stages.evaluate.bootstrap import Bootstrap, Estimate, Rates, detectable, difference, estimates, outcome
from sparring.stages.evaluate.stage import JUDGES, win_rates

NOTHING = Estimate(mean=math.nan, low=math.nan, high=math.nan, n=0)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The win rate of `arm` against the base minus that of `baseline`, by one judge."""

    arm: str
    baseline: str
    judge: str
    iteration: int
    """0 where there is none that both have evaluated."""
    why: str = ""
    """Why they are not compared, '' where they are."""
    estimate: Estimate = NOTHING
    detectable: float = math.nan
    confidence: float = math.nan
    notes: tuple[str, ...] = ()
    """What should be known of the two beside the figures."""

    @property
    def finding(self) -> str:
        """`better`, `worse`, `none`, or `unknown` where they are not compared."""
        return outcome(self.estimate, self.detectable)


@dataclass(frozen=True, kw_only=True)
class _Side:
    """An arm under its label."""

    arm: RunHistory
    name: str
    known: dict[tuple[int, str], Rates] = field(default_factory=dict)
    """What was read: the scores of the first arm meet those of every other one."""

    @property
    def evaluated(self) -> list[int]:
        return [t for t, steps in self.arm.done.items() if "evaluate" in steps]

    @property
    def base(self) -> Manifest | None:
        return self.arm.every.get(0, {}).get("sample_base")

    def rates(self, t: int, label: str) -> Rates:
        """Return prompt -> win rate of a score, without the prompts that trained the judge."""
        if (t, label) not in self.known:
            scores = self.arm.opened(t, label)
            assert scores is not None
            self.known[t, label] = {prompt: rate for prompt, rate in win_rates(scores).items() if not math.isnan(rate)}
        return self.known[t, label]


def compare(arms: Sequence[RunHistory]) -> list[Difference]:
    """Compare every arm with the first one, by each judge; nothing for a single arm."""
    first, *others = (_Side(arm=arm, name=name) for arm, name in zip(arms, labels(arms), strict=True))
    return [one for other in others for one in _compared(other, first)]


def _compared(arm: _Side, baseline: _Side) -> list[Difference]:
    t = max({*arm.evaluated} & {*baseline.evaluated}, default=0)
    if t:
        return [_judged(arm, baseline, t, judge) for judge in JUDGES]
    there = "; ".join(f"{side.name}: {', '.join(map(str, side.evaluated)) or 'none'}" for side in (arm, baseline))
    why = f"there is no iteration that both have evaluated ({there})"
    return [_refused(arm, baseline, 0, judge, why) for judge in JUDGES]


def _judged(arm: _Side, baseline: _Side, t: int, judge: str) -> Difference:
    label = f"score_{judge}_base"
    apart = _apart(arm, baseline, t, label)
    if isinstance(apart, str):
        return _refused(arm, baseline, t, judge, apart)
    made = baseline.arm.done[t]["evaluate"].setting
    settings = Bootstrap(
        resamples=made("evaluate.resamples"), confidence=made("evaluate.confidence"), seed=made("seed")
    )
    (estimate,) = estimates([apart], settings)
    return Difference(
        arm=arm.name,
        baseline=baseline.name,
        judge=judge,
        iteration=t,
        estimate=estimate,
        detectable=detectable(list(apart.values()), settings.confidence),
        confidence=settings.confidence,
        notes=tuple(_weaker(arm, baseline, t, label)),
    )


def _refused(arm: _Side, baseline: _Side, t: int, judge: str, why: str) -> Difference:
    return Difference(arm=arm.name, baseline=baseline.name, judge=judge, iteration=t, why=why)


def _apart(arm: _Side, baseline: _Side, t: int, label: str) -> Rates | str:
    """Return prompt -> difference, or why there is none."""
    for side in (arm, baseline):
        if label not in side.arm.done[t]:
            return f"{label} of {side.name}, iteration {t}, is not made; `sparring run` makes it"
    why = reason(arm.arm.done[t][label], baseline.arm.done[t][label], arm.base, baseline.base)
    if why:
        return why
    apart = difference(arm.rates(t, label), baseline.rates(t, label))
    if len(apart) < 2:
        return f"{len(apart)} of the held-out prompts are in both and did not train this judge; it takes two"
    return apart


def _weaker(arm: _Side, baseline: _Side, t: int, label: str) -> list[str]:
    """Return what makes a comparison weaker than it looks."""
    here, there = (side.arm.done[t] for side in (arm, baseline))
    seeds = [steps["evaluate"].setting("seed") for steps in (here, there)]
    said = []
    if seeds[0] != seeds[1]:
        said.append(f"{arm.name} has another seed than {baseline.name} ({seeds[0]}, not {seeds[1]})")
    if redone(here[label], there[label]):
        said.append(f"{arm.name} met responses of the base that were sampled again: alike, not the same")
    return said
