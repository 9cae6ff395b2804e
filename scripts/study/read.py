"""What the store holds of a study: for each arm, seed and iteration its win rates on each prompt and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.study.presets import label
from sparring.pipeline import run_history
from sparring.pipeline.run_history import RunHistory, Steps
from sparring.pipeline.store.manifest import Manifest
from sparring.stages.evaluate.stage import JUDGES, win_rates


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of a step's summary."""

    name: str
    step: str
    key: str
    form: str


FIGURES = (
    Figure(name="response tokens, mean", step="sample_heldout", key="length_mean", form=".1f"),
    Figure(name="cut at max_tokens", step="sample_heldout", key="cap_rate", form=".1%"),
    Figure(name="distinct-2 in a response", step="sample_heldout", key="distinct_2", form=".3f"),
    Figure(name="different texts of K, in play", step="sample", key="unique_rate", form=".3f"),
    Figure(name="distinct-2 over K, in play", step="sample", key="distinct_2", form=".3f"),
    Figure(name="similarity over K, in play", step="embed", key="similarity_mean", form=".3f"),
    Figure(name="|P̃-P|, mean", step="calibrate", key="mean_shift", form=".4f"),
    Figure(name="h chosen, after", step="train", key="probe_h_w", form="+.2f"),
    Figure(name="h rejected, after", step="train", key="probe_h_l", form="+.2f"),
    Figure(name="in band, output head", step="train", key="in_band", form=".1%"),
    Figure(name="ρ ≤ 0, output head", step="train", key="rho_negative", form=".1%"),
    Figure(name="reversed", step="train", key="reversed", form=".1%"),
    Figure(name="ρ, output head", step="train", key="rho", form="+.3f"),
    Figure(name="repulsion / objective", step="train", key="repulsion_ratio", form=".3f"),
    Figure(name="‖u_w-u_l‖, first batch", step="train", key="distance_new", form=".3f"),
    Figure(name="clipped steps", step="train", key="clipped_share", form=".0%"),
    Figure(name="saturation", step="train", key="saturation", form=".3f"),
)
"""Of the policy after the iteration; `in play` of the responses it was trained on, which the policy before it gave."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The policy of an arm after an iteration."""

    arm: str
    seed: int
    iteration: int
    rates: Mapping[str, Mapping[str, float]]
    """Judge -> prompt -> P(it beats the base), without the prompts that trained the judge."""
    figures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that a report is made of."""

    policies: tuple[Policy, ...]
    base: Mapping[int, Mapping[str, float]]
    """Seed -> the figures of the base that are measured on held-out prompts."""
    manifests: Mapping[str, Manifest]
    """Fingerprint -> manifest of every step."""
    last: Steps
    """The steps of the last policy."""


def read(folder: Path, seeds: Mapping[str, int]) -> Found:
    """Read the run in `folder`; policies not evaluated yet are left out. seeds: arm of the multirun -> its seed."""
    made = {one.arm: one for one in run_history.find(folder.parent, [folder.name])}
    policies, manifests = [], {}
    base: dict[int, Mapping[str, float]] = {}
    last: Steps = {}
    for arm, history in ((arm, made[arm]) for arm in seeds if arm in made):
        seed = seeds[arm]
        for t, steps in history.every.items():
            manifests.update({manifest.fingerprint: manifest for manifest in steps.values()})
            if t == 0 and "sample_base" in steps:
                base[seed] = figures({"sample_heldout": steps["sample_base"]})
            if "evaluate" in steps:
                last = steps
                policies.append(_policy(history, label(arm), seed, t))
    return Found(policies=tuple(policies), base=base, manifests=manifests, last=last)


def _policy(history: RunHistory, arm: str, seed: int, t: int) -> Policy:
    rates = {judge: _rates(history, t, f"score_{judge}_base") for judge in JUDGES}
    return Policy(arm=arm, seed=seed, iteration=t, rates=rates, figures=figures(history.every[t]))


def _rates(history: RunHistory, t: int, label: str) -> dict[str, float]:
    scores = history.opened(t, label)
    assert scores is not None
    return {prompt: rate for prompt, rate in win_rates(scores).items() if not math.isnan(rate)}


def figures(steps: Steps) -> dict[str, float]:
    """Return name -> value of the figures that the steps report."""
    found = {f.name: steps[f.step].summary.get(f.key) for f in FIGURES if f.step in steps}
    return {name: float(value) for name, value in found.items() if value is not None}
