"""What the store holds of a study: for each arm, seed and iteration its win rates on each prompt and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scripts.study.presets import label
from sparring.pipeline.report.figures import FIGURES as TABLE
from sparring.pipeline.runs import run_history
from sparring.pipeline.runs.panel import Panel
from sparring.pipeline.runs.run_history import RunHistory, Steps
from sparring.pipeline.store.manifest import Manifest
from sparring.stages.evaluate.stage import JUDGES, win_rates

FIGURES: Mapping[str, tuple[str, str]] = {
    "response tokens, mean": ("heldout_length_mean", ".1f"),
    "cut at max_tokens": ("heldout_cap_rate", ".1%"),
    "distinct-2 in a response": ("heldout_distinct_2", ".3f"),
    "different texts of K, in play": ("played_unique_rate", ".3f"),
    "distinct-2 over K, in play": ("played_distinct_2", ".3f"),
    "similarity over K, in play": ("similarity", ".3f"),
    "|P̃-P|, mean": ("shift", ".4f"),
    "h chosen, after": ("probe_h_w", "+.2f"),
    "h rejected, after": ("probe_h_l", "+.2f"),
    "in band, output head": ("in_band", ".1%"),
    "ρ ≤ 0, output head": ("rho_negative", ".1%"),
    "reversed": ("reversed", ".1%"),
    "ρ, output head": ("rho", "+.3f"),
    "repulsion / objective": ("repulsion's gradient / objective's", ".3f"),
    "‖u_w-u_l‖, first batch": ("‖u_w-u_l‖ of the first batch, before training", ".3f"),
    "clipped steps": ("clipped_share", ".0%"),
    "saturation": ("saturation", ".3f"),
}
"""Name -> a figure of a run's panel or of its report's table, and the format of its mean.

Figures are of the policy after the iteration; those `in play` are of the responses that it was trained on, which the
previous policy gave.
"""


INPUTS: Mapping[str, tuple[str, str]] = {
    "files of policy": ("sample_base", "policy"),
    "files of oracle": ("score_oracle_base", "judge"),
    "files of judge": ("score_second_base", "judge"),
    "files of encoder": ("embed", "encoder"),
}
"""Name -> step and role of the input."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The policy of an arm after an iteration."""

    arm: str
    seed: int
    iteration: int
    rates: Mapping[str, Mapping[str, float]]
    """Judge -> prompt -> P(it beats the base), without the prompts that the judge was trained on."""
    figures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """All that a report is made of."""

    policies: tuple[Policy, ...]
    base: Mapping[int, Mapping[str, float]]
    """Seed -> the figures of the base that are measured on held-out prompts."""
    manifests: Mapping[str, Manifest]
    """Fingerprint -> manifest of every step."""
    last: Steps
    """The steps of the last policy."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name in INPUTS -> digest, where it is the same in all arms."""


def read(folder: Path, seeds: Mapping[str, int]) -> StudyData:
    """Read the run in `folder`; policies not evaluated yet are left out. seeds: arm of the multirun -> its seed."""
    histories = {one.arm: one for one in run_history.open_arms(folder.parent, [folder.name])}
    policies, manifests = [], {}
    base: dict[int, Mapping[str, float]] = {}
    last: Steps = {}
    digests: dict[str, set[str]] = {source: set() for source in INPUTS}
    for name, seed in seeds.items():
        if name not in histories:
            continue
        history = histories[name]
        panels = {panel.iteration: panel for panel in history.panels}
        for t, steps in history.steps.items():
            manifests.update({manifest.fingerprint: manifest for manifest in steps.values()})
            for source, (step, role) in INPUTS.items():
                if step in steps and role in steps[step].inputs:
                    digests[source].add(steps[step].inputs[role]["digest"])
            if "evaluate" in steps:
                last = steps
                rates = {judge: _rates(history, t, judge) for judge in JUDGES}
                numbers = figures(history, panels[t])
                policies.append(Policy(arm=label(name), seed=seed, iteration=t, rates=rates, figures=numbers))
        if panels and "sample_base" in history.steps.get(0, {}):
            base[seed] = figures(history, panels[min(panels)], of_base=True)
    files = {source: found.pop() for source, found in digests.items() if len(found) == 1}
    return StudyData(policies=tuple(policies), base=base, manifests=manifests, last=last, files=files)


def _rates(history: RunHistory, t: int, judge: str) -> dict[str, float]:
    scores = history.artifact(t, f"score_{judge}_base")
    assert scores is not None
    return {prompt: rate for prompt, rate in win_rates(scores).items() if not math.isnan(rate)}


def figures(history: RunHistory, panel: Panel, of_base: bool = False) -> dict[str, float]:
    """Return name -> value of the figures that an iteration has; of_base: those of the base's held-out responses."""
    table = {source.name: source for source in TABLE}
    values = {}
    for name, (figure, _) in FIGURES.items():
        if of_base:
            figure = figure.replace("heldout_", "base_") if figure.startswith("heldout_") else ""
        value = panel.get(figure)
        if value is None and figure in table:
            made = table[figure].figure(panel.iteration, history.iterations[panel.iteration], panel)
            value = float(made.value) if made else None
        if value is not None:
            values[name] = value
    return values
