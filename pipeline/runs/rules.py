"""What warns: each rule is a pure predicate over the panels up to now, with its threshold in the group `diagnostics`.

A rule sees the panels of iterations 1 .. t, this one last, and returns what is wrong, or nothing. A figure that is not
there fires no rule. The name of a rule is that of its threshold; null there turns it off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import gt, lt

from sparring.pipeline.runs.config import DiagnosticsConfig
from sparring.pipeline.runs.panel import Panel
from sparring.stages.evaluate.bootstrap import alarm

History = Sequence[Panel]
Rule = Callable[[History, float], str]
CHANGED = 0.01
"""Least share of the parameters that a training changes which learned something: after a cast to bf16 at a small lr,
1% is what is left of it."""


@dataclass(frozen=True, kw_only=True)
class RuleWarning:
    """A rule that holds of an iteration."""

    iteration: int
    rule: str
    threshold: float
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text} (diagnostics.{self.rule}={self.threshold:g})"


def warnings(panels: History, config: DiagnosticsConfig) -> list[RuleWarning]:
    """Return what fires in each iteration; panels: those of iterations 1 .. t in order."""
    return [one for end in range(1, len(panels) + 1) for one in fired(panels[:end], config)]


def fired(history: History, config: DiagnosticsConfig) -> list[RuleWarning]:
    """Return what fires in the last iteration of `history`."""
    warnings = []
    for name, rule in RULES.items():
        threshold = getattr(config, name)
        text = rule(history, threshold) if threshold is not None else ""
        if text:
            warnings.append(RuleWarning(iteration=history[-1].iteration, rule=name, threshold=threshold, text=text))
    return warnings


def overoptimized(history: History, margin: float) -> str:
    """The oracle's interval lies above 1/2 while the second judge says less than 1/2 - margin: the oracle is gamed."""
    now, against = history[-1], []
    opponents = {"previous": "the policy before"} if now.iteration > 1 else {}
    for opponent, said in {**opponents, "base": "the base"}.items():
        low, second = now.get(f"oracle_{opponent}_low"), now.get(f"second_{opponent}")
        if low is not None and second is not None and alarm(low, second + margin):
            oracle, high = now.get(f"oracle_{opponent}"), now.get(f"oracle_{opponent}_high")
            by_both = f"{oracle:.3f} [{low:.3f}, {high:.3f}] by the oracle, {second:.3f} by the second judge"
            against.append(f"against {said} it wins {by_both}")
    return f"the policy may be gaming the oracle: {'; '.join(against)}" if against else ""


def above(name: str, what: str) -> Rule:
    """Return the rule that a measurement is above the threshold; what: how it is said, {} for the value."""

    def rule(history: History, most: float) -> str:
        one = history[-1].figures.get(name)
        return what.format(one.text) if one and one.value > most else ""

    return rule


def length(beyond: Callable[[float, float], bool]) -> Rule:
    """Return the rule that the mean tokens of held-out responses, times the base's, are beyond the threshold."""

    def rule(history: History, factor: float) -> str:
        ours, base = (history[-1].figures.get(f"{who}_length_mean") for who in ("heldout", "base"))
        if not ours or not base or not base.value or not beyond(ours.value / base.value, factor):
            return ""
        times = ours.value / base.value
        return f"held-out responses have {ours.text} tokens in the mean, {times:.2f} times the base's {base.text}"

    return rule


def repeats(history: History, share: float) -> str:
    """Different texts of K or distinct-2 fell below `share` of iteration 1's, or held-out distinct-2 of the base's."""
    for name, what in (("played_unique_rate", "different texts of K"), ("played_distinct_2", "distinct-2 over K")):
        text = _fell(history, name, share)
        if text:
            return f"{what}: {text}"
    ours, base = history[-1].get("heldout_distinct_2"), history[-1].get("base_distinct_2")
    if ours is not None and base and ours / base < share:
        return f"distinct-2 of held-out responses is {ours / base:.2f} times the base's"
    return ""


def collapsed(history: History, share: float) -> str:
    """||u_w - u_l|| of new pairs, before training, fell below `share` of iteration 1's."""
    text = _fell(history, "distance_new", share)
    return f"the states of chosen and rejected responses come together: {text}" if text else ""


def learned_nothing(history: History, times: float) -> str:
    """Chosen and rejected moved apart by no more than `times` the noise before training, or hardly a weight changed."""
    values = {name: history[-1].get(name) for name in ("probe_h_w", "probe_h_l", "noise", "changed_fraction")}
    known = {name: value for name, value in values.items() if value is not None}
    if len(known) < len(values) or learned(known, times):
        return ""
    return "training changed the policy no more than noise; raise trainer.lr or take more steps"


def learned(summary: Mapping[str, float], times: float = 10.0) -> bool:
    """Return whether chosen and rejected moved apart by more than `times` the noise before training."""
    apart = abs(summary["probe_h_w"] - summary["probe_h_l"])
    return apart > times * summary["noise"] and summary["changed_fraction"] > CHANGED


def _fell(history: History, name: str, share: float) -> str:
    """Return that a figure is below `share` of what it was in the first iteration."""
    now, first = history[-1].figures.get(name), history[0].figures.get(name)
    if now is None or first is None or history[0].iteration != 1 or not now.value < share * first.value:
        return ""
    return f"{now.text}, in iteration 1 {first.text}"


RULES: Mapping[str, Rule] = {
    "overoptimized": overoptimized,
    "longer": length(gt),
    "shorter": length(lt),
    "capped": above("heldout_cap_rate", "{} of the held-out responses were cut at sampler.max_tokens, judged so"),
    "repeats": repeats,
    "similar": above("similarity", "the K responses of a prompt are alike: similarity {} in the mean"),
    "collapsed": collapsed,
    "chosen_falls": above(
        "h_w_negative", "{} of the chosen responses had lost probability in the second half of the training"
    ),
    "ties": above("ties", "the oracle sees no difference in {} of the pairs"),
    "position": above("position_disagreement", "the oracle's winner changes with the order in {} of the pairs"),
    "reversed": above("reversed", "the objective turns against the preference in {} of the pairs measured"),
    "learned_nothing": learned_nothing,
}
"""In the order in which they are listed; the same names as in DiagnosticsConfig."""
