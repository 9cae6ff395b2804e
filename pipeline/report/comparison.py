"""The arms of a report against the first of them: differences of their win rates against the base, paired by prompt.

Read from the held-out scores, at the last iteration that both arms have evaluated, by both judges. Arms that were not
measured alike are not compared, and a sentence says why: what a step `score_<judge>_base` has read says what its win
rates are of. `seed=1, not 0` is 1 of the arm and 0 of the baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparring.pipeline.report.judging import JUDGES
from sparring.pipeline.runs.run_history import RunHistory, labels
from sparring.pipeline.store.manifest import Manifest
from sparring.stages import fields
from sparring.stages.evaluate.bootstrap import (
    POWER,
    Bootstrap,
    Estimate,
    Rates,
    detectable,
    difference,
    estimates,
    outcome,
)
from sparring.stages.evaluate.stage import win_rates
from sparring.stages.plain import interval_text

NOTHING = Estimate(mean=math.nan, low=math.nan, high=math.nan, n=0)
HEADS = ("arm", *JUDGES.values())
FINDINGS = {"better": "better", "worse": "worse", "none": "no difference detectable"}
REFUSED = "not compared"
TITLE = "Each arm against {}"
EXPLANATION = (
    "Win rate against the base minus that of {}, the first arm (name another one first to compare with that), prompt "
    "by prompt on held-out prompts that both have, at the last iteration that both have evaluated."
)
RESPONSES = ("samples", "opponents")
"""Inputs of a score that are responses; the others are the judge's."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
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

    @property
    def text(self) -> str:
        """The difference, what a judge finds of it, prompts and minimum detectable effect, a line each."""
        if self.why:
            return REFUSED
        figures = f"n={self.estimate.n}, detectable {self.detectable:.3f}"
        return f"{interval(self.estimate, signed=True)}\n{FINDINGS[self.finding]}\n{figures}"


@dataclass(frozen=True, kw_only=True)
class _Side:
    """An arm under its label."""

    arm: RunHistory
    name: str
    cache: dict[tuple[int, str], Rates] = field(default_factory=dict)
    """Rates that are read: those of the first arm are compared with every other one's."""

    @property
    def evaluated(self) -> list[int]:
        return [t for t, steps in self.arm.iterations.items() if "evaluate" in steps]

    def rates(self, t: int, label: str) -> Rates:
        """Return prompt -> win rate of a score, without the prompts that trained the judge."""
        if (t, label) not in self.cache:
            scores = self.arm.artifact(t, label)
            assert scores is not None
            self.cache[t, label] = {prompt: rate for prompt, rate in win_rates(scores).items() if not math.isnan(rate)}
        return self.cache[t, label]


def compare(arms: Sequence[RunHistory]) -> list[Comparison]:
    """Compare every arm with the first one, by each judge; nothing for a single arm."""
    first, *others = (_Side(arm=arm, name=name) for arm, name in zip(arms, labels(arms), strict=True))
    compared = []
    for other in others:
        t = max({*other.evaluated} & {*first.evaluated}, default=0)
        compared += [_by_judge(other, first, t, judge) for judge in JUDGES]
    return compared


def _by_judge(arm: _Side, baseline: _Side, t: int, judge: str) -> Comparison:
    """Compare two arms at iteration t, by one judge."""
    common: dict[str, Any] = {"arm": arm.name, "baseline": baseline.name, "judge": judge, "iteration": t}
    if not t:
        made = "; ".join(f"{one.name}: {', '.join(map(str, one.evaluated)) or 'none'}" for one in (arm, baseline))
        return Comparison(**common, why=f"there is no iteration that both have evaluated ({made})")
    label, ours, theirs = f"score_{judge}_base", arm.arm.iterations[t], baseline.arm.iterations[t]
    for side, steps in ((arm, ours), (baseline, theirs)):
        if label not in steps:
            return Comparison(
                **common, why=f"{label} of {side.name}, iteration {t}, is not made; `sparring run` makes it"
            )
    bases = (side.arm.manifest(0, "sample_base") for side in (arm, baseline))
    if why := why_not(ours[label], theirs[label], *bases):
        return Comparison(**common, why=why)
    by_prompt = difference(arm.rates(t, label), baseline.rates(t, label))
    if len(by_prompt) < 2:
        few = f"{len(by_prompt)} of the held-out prompts are in both and did not train this judge; it takes two"
        return Comparison(**common, why=few)
    chosen = {name: theirs["evaluate"].setting(f"evaluate.{name}") for name in ("resamples", "confidence", "seed")}
    (estimate,) = estimates([by_prompt], settings := Bootstrap(**chosen))
    seeds, notes = [steps["evaluate"].setting("evaluate.seed") for steps in (ours, theirs)], []
    if seeds[0] != seeds[1]:
        notes.append(f"{arm.name} has another seed than {baseline.name} ({seeds[0]}, not {seeds[1]})")
    if not _same(ours[label], theirs[label], "digest") and _same(ours[label], theirs[label], "name"):
        notes.append(f"{arm.name} was compared with responses of the base that were sampled again: alike, not the same")
    return Comparison(
        **common,
        estimate=estimate,
        detectable=detectable(list(by_prompt.values()), settings.confidence),
        confidence=settings.confidence,
        notes=tuple(notes),
    )


# Whether win rates may be compared


def why_not(ours: Manifest, theirs: Manifest, our_base: Manifest | None, their_base: Manifest | None) -> str:
    """Return why win rates against the base are not compared, '' where they are.

    ours, theirs: the scores against the base by a judge, theirs of the baseline. our_base, their_base: the base's
    held-out responses, None where they are no longer in the store.
    """
    if _same(ours, theirs, "digest", "samples"):
        return "both have the same held-out responses, so they are one policy"
    of_base = []
    if not _same(ours, theirs, "digest") and not _same(ours, theirs, "name"):
        if our_base and their_base:
            others = {"policy": "another base", "prompts": "other prompts"}
            of_base = [why for role, why in others.items() if not _same(our_base, their_base, "digest", role)]
            if changed := changes(our_base.identity, their_base.identity):
                of_base.append(f"the base's held-out responses are sampled otherwise ({changed})")
        of_base = of_base or ["the base's held-out responses are others"]
    return "; ".join(filter(None, [*of_base, _of_judge(ours, theirs)]))


def _of_judge(ours: Manifest, theirs: Manifest) -> str:
    """Return how two scores are by another judge, '' where they are by the same."""
    one, other = ours.setting("oracle"), theirs.setting("oracle")
    kind = one["kind"]
    if kind != other["kind"]:
        return f"another judge ({kind}, not {other['kind']})"
    if changed := changes(one, other):
        return f"the judge {kind} is set otherwise ({changed})"
    roles = sorted({*ours.inputs, *theirs.inputs} - {*RESPONSES})
    differing = [role for role in roles if not _same(ours, theirs, "digest", role)]
    if differing:
        return f"the judge {kind} is read from other files ({', '.join(differing)})"
    if ours.version != theirs.version:
        return f"the judge was asked by another version of the step score ({ours.version}, not {theirs.version})"
    return ""


def changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Return `seed=1, not 0; k=2, not 1`: the settings of two identities that differ; '' without any."""
    return "; ".join(f"{key}={one}, not {other}" for key, one, other in fields.differences(ours, theirs))


def _same(ours: Manifest, theirs: Manifest, what: str, role: str = "opponents") -> bool:
    """Whether an input is the same, by its `digest` or by its `name`, the fingerprint."""
    one, other = (manifest.inputs.get(role, {}).get(what) for manifest in (ours, theirs))
    return one is not None and one == other


# What is said of the comparisons


def rows(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Return the cells under HEADS, of the arms that some judge compares."""
    arms: dict[tuple[str, int], list[str]] = {}
    for one in comparisons:
        arms.setdefault((one.arm, one.iteration), []).append(one.text)
    shown = {f"{arm}\niteration {t}": cells for (arm, t), cells in arms.items() if {*cells} != {REFUSED}}
    return [(name, *cells) for name, cells in shown.items()]


def remarks(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a line for each arm that is not compared and why, notes on the others, and what intervals leave out."""
    refused: dict[tuple[str, str, str], list[str]] = {}
    for one in comparisons:
        if one.why:
            refused.setdefault((one.arm, one.baseline, one.why), []).append(JUDGES[one.judge])
    lines = []
    for (arm, baseline, why), judges in refused.items():
        by = "" if len(judges) == len(JUDGES) else f" by the {judges[0]}"
        lines.append(f"{arm} is not compared with {baseline}{by}: {why.removesuffix('.')}.")
    lines += dict.fromkeys(note for one in comparisons for note in one.notes)
    compared = [one for one in comparisons if not one.why]
    if compared:
        confidence = compared[0].confidence
        lines += [
            f"{confidence:.0%} intervals over prompts. They do not include seed variance: each arm was trained once, "
            "and another training of the same arm may differ by as much.",
            "n: held-out prompts. A difference is called better or worse if its interval excludes 0 and it is larger "
            f"than the detectable one: a true difference of that size has such an interval {POWER:.0%} of the time.",
        ]
        lines += [by_chance(len(compared), confidence)] if len(compared) > len(JUDGES) else []
    return lines


def by_chance(count: int, confidence: float) -> str:
    """Return how many of `count` comparisons would look different by chance."""
    return (
        f"{count} comparisons at {confidence:.0%}: if no arm differed from any other, {count * (1 - confidence):.1f} "
        "of them would be expected to look like a difference; nothing is corrected for that."
    )


def interval(one: Estimate, signed: bool = False) -> str:
    """Return `0.540 [0.512, 0.568]`, of a difference with signs; what rounds to 0 is not negative."""
    return interval_text(one.mean, one.low, one.high, "+z.3f" if signed else ".3f") if one.n else "no prompts"
