"""What a plan will cost: tokens, minutes, disk, money. Rates are those measured in the store with the same base policy
where there are any, else those of rates.py, times what works side by side. Steps are taken to follow one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sparring.pipeline.config.model import Config
from sparring.pipeline.planning import memory, rates
from sparring.pipeline.planning.memory import MOMENTS
from sparring.pipeline.planning.plan import Plan, State, Step
from sparring.pipeline.planning.rates import Rate, Work, workers_of
from sparring.pipeline.store.manifest import Artifact, CorruptManifest, Manifest, fingerprint_of
from sparring.stages.errors import DataError
from sparring.stages.fields import setting
from sparring.stages.fingerprint import digest
from sparring.stages.model_folder import header
from sparring.stages.sample.config import FolderPolicy
from sparring.stages.step import Input

MEAN_SHARE = 0.8
"""Share of max_tokens a response is expected to take before any was measured."""
MEAN_LENGTH = 512.0
"""Tokens that it is expected to take at most: chat answers of 2,000 characters, the published means, have fewer."""
HUB_PROMPTS = 60_000
"""Prompts a source is expected to hold before it was read."""
EMBEDDED = ("mini", "lexical")
UNITS = {"score": "duels", "embed": "responses"}
"""What a step's rate counts, where it is not tokens; by their names in a manifest's stats."""
LIGHT_S = 2.0
"""Seconds of a step without a model."""
HEAVY = ("sample", "score", "embed", "reference", "logprobs", "train")
"""Steps whose workers start and load models."""
MEASURED = "measured here"
"""How a rate is known that the store has."""
UNKNOWN = 300_000_000
"""Weights of a policy of which nothing is known."""
MOST_POLICIES = {"last": 2, "best": 3}
"""keep.policies -> policies that are on the disk at once: the one in training, the one it began with, the best."""
CHECKPOINTS = 2
"""Of a training: the one before is removed when the next one is complete."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one step still to be made."""

    tokens: float
    seconds: float
    kept_bytes: float
    """Disk the artifact keeps."""
    peak_bytes: float
    """Disk it needs while it runs, beside what it keeps."""
    rate: Rate | None = None
    """What its seconds rest on, None of a step that takes seconds; of a sum one that was not measured here, if any."""

    @property
    def assumed(self) -> bool:
        """Whether the seconds rest on a rate that was not measured here."""
        return self.rate is not None and self.rate.known != MEASURED


def manifests(store: Path) -> list[Manifest]:
    """Return all readable manifests of the store, oldest first."""
    readable = []
    for path in sorted(store.glob("*/manifest.json"), key=lambda p: p.stat().st_mtime):
        kind, _, _ = path.parent.name.rpartition("-")
        try:
            manifest = Artifact(store, kind, fingerprint_of(path)).manifest()
        except CorruptManifest:
            continue
        if manifest:
            readable.append(manifest)
    return readable


class Estimate:
    """What the steps of a plan are expected to cost, by the rates of what the store has made already."""

    def __init__(self, plan: Plan, made: Iterable[Manifest], gpus: Sequence[int] = ()) -> None:
        """gpus: of each machine, for engines whose number is left open."""
        self.plan, self.made, self.gpus = plan, list(made), gpus
        self.costs: dict[str, Cost] = {}
        trained = {m.fingerprint: _input_names(m).get("policy", "") for m in self.made if m.step == "train"}
        trained |= {name: s.inputs["policy"] for name, s in plan.steps.items() if s.spec.kind == "train"}
        self.bases: dict[str, str] = {}
        """A trained policy -> the one that it was trained from in the end."""
        for name in trained:
            chain = [name]
            while chain[-1] in trained and chain[-1] not in self.bases:
                chain.append(trained[chain[-1]])
            self.bases |= dict.fromkeys(chain[:-1], self.bases.get(chain[-1], chain[-1]))
        self.rates: dict[str, float] = {}
        """Units (UNITS) a second of the latest artifact of a kind, engine, dtype, oracle, encoder and base policy, with
        or without GPUs."""
        for manifest in self.made:
            units = manifest.stats.get(UNITS.get(manifest.step, "tokens"))
            if units and manifest.seconds:
                on_gpus = bool(manifest.made_with.get("hardware", {}).get("gpus"))
                alike = self._alike(manifest.step, manifest.identity, _input_names(manifest), on_gpus)
                self.rates[alike] = units / manifest.seconds
        self.weights = {arm: self._weights(arm) for arm in plan.configs}
        self.models = {arm: memory.of_policy(plan, arm, weights) for arm, weights in self.weights.items()}
        self.starts = rates.starts(plan, self.weights)
        self.slices = {arm: self._prompts_per_iteration(config) for arm, config in plan.configs.items()}

    def cost(self, step: Step) -> Cost:
        """Return what `step` is expected to cost; tokens are what it reads or samples."""
        if step.fingerprint in self.costs:
            return self.costs[step.fingerprint]
        arm = step.uses[0].arm
        config, weights = self.plan.configs[arm], self.weights[arm]
        work = _work(step, self.plan, config, self.slices[arm])
        rate, workers = self._rate(step, config, work), workers_of(step, self.gpus)
        stated_s = config.hardware.expect.start_s
        heavy = step.spec.kind in HEAVY
        seconds = (self.starts[step.fingerprint] if stated_s is None else stated_s) if heavy else LIGHT_S
        if rate:
            units = _units(step, self.plan, config, self.slices[arm])
            seconds += (work.tokens if units is None else units) / (rate.per_s * workers) + rate.fixed_s
        kept, peak = _disk(step, config, weights, work.tokens)
        cost = Cost(tokens=work.tokens, seconds=seconds, kept_bytes=kept, peak_bytes=peak, rate=rate)
        self.costs[step.fingerprint] = cost
        return cost

    def _rate(self, step: Step, config: Config, work: Work) -> Rate | None:
        """Return the rate of a step, None where nothing is known of it or it is of no account."""
        arm = step.uses[0].arm
        alike = self._alike(step.spec.kind, step.identity, step.inputs, bool(step.workers.gpus)) if self.rates else ""
        if measured := self.rates.get(alike):
            unit = rates.UNITS.get(step.spec.kind, "tokens")
            return Rate(per_s=measured / workers_of(step, self.gpus), unit=unit, known=MEASURED)
        return rates.stated(step, config, self.weights[arm]) or rates.from_data_sheet(
            step, config, self.models[arm], work
        )

    def total(self, states: Mapping[str, State]) -> Cost:
        """Return the sum over the steps that are not hits; the peak is kept plus the largest step's need."""
        costs = [self.cost(step) for name, step in self.plan.steps.items() if states[name].kind != "hit"]
        kept = sum(c.kept_bytes for c in costs) - self._dropped_bytes(states)
        return Cost(
            tokens=sum(c.tokens for c in costs),
            seconds=sum(c.seconds for c in costs),
            kept_bytes=kept,
            peak_bytes=kept + max((c.peak_bytes for c in costs), default=0.0),
            rate=next((c.rate for c in costs if c.assumed), None),
        )

    def _dropped_bytes(self, states: Mapping[str, State]) -> float:
        """Return the bytes of the policies that `keep.policies` drops before the last one is there."""
        total = 0.0
        for arm, config in self.plan.configs.items():
            made = [step for _, step in self.plan.arm(arm) if step.spec.kind == "train"]
            trained = [step for step in made if states[step.fingerprint].kind != "hit"]
            most = MOST_POLICIES.get(config.keep.policies, len(trained))
            total += sum(self.cost(step).kept_bytes for step in trained[most:])
        return total

    def _alike(self, kind: str, identity: Mapping[str, Any], inputs: Mapping[str, str], on_gpus: bool) -> str:
        """Return a digest of what steps have in common whose rates are alike."""
        dtype = setting(identity, "sampler.dtype", setting(identity, "trainer.dtype"))
        named = [setting(identity, "sampler.engine"), dtype, setting(identity, "oracle")]
        policy = inputs.get("policy")
        return digest(
            [kind, *named, inputs.get("encoder"), self.bases.get(policy, policy) if policy else None, on_gpus]
        )

    def _weights(self, arm: str) -> int:
        """Return the weights of an arm's policy: those of its files, else those that the configuration states."""
        policy = self.plan.configs[arm].policy
        stated = None if isinstance(policy, FolderPolicy) else policy.parameters
        base = self.plan.base_policy(arm)
        return (weights_in_files(base) if base else None) or stated or UNKNOWN

    def _prompts_per_iteration(self, config: Config) -> int:
        """Return the prompts of an iteration; of slices whose prompts were not read yet, a guess."""
        if config.prompts.per_iteration is not None:
            return config.prompts.per_iteration
        counted = [m for m in self.made if m.step == "prompts" and m.fingerprint in self.plan.steps]
        prompts = counted[-1].summary.get("train", 0) if counted else config.prompts.limit or HUB_PROMPTS
        return int(prompts) // (config.prompts.slices or 1)


def weights_in_files(model: Input) -> int | None:
    """Return how many weights the headers of a model's safetensors files list, None where none can be read."""
    files = [model.root / file.path for file in model.files if file.path.endswith(".safetensors")]
    try:
        return sum(prod(tensor.shape) for file in files for tensor in header(file).values()) or None
    except DataError:  # not here yet, or not what it seems
        return None


def price(config: Config, total: Cost) -> str | None:
    """Return GPU-hours and dollars of a plan, and what they rest on; None without a GPU and a price."""
    hardware, hours = config.hardware, total.seconds / 3600
    many = f"{hardware.gpus} GPU{'s' * (hardware.gpus > 1)}"
    parts = [f"{hours * hardware.gpus:.1f} GPU-hours on {many}"] if hardware.gpus else []
    if hardware.usd_per_hour is not None:
        parts.append(f"${hours * hardware.usd_per_hour:,.2f} at ${hardware.usd_per_hour:g} an hour")
    basis = f" (rates of hardware={hardware.name}: {hardware.expect.basis})" if total.assumed else ""
    return f"{', '.join(parts)}{basis}" if parts else None


def _input_names(manifest: Manifest) -> dict[str, str]:
    return {role: entry.get("name", "") for role, entry in manifest.inputs.items()}


def _work(step: Step, plan: Plan, config: Config, pairs: int) -> Work:
    """Return the tokens that a step reads or samples, and the mean lengths that they follow from."""
    length = min(config.sampler.max_tokens * MEAN_SHARE, MEAN_LENGTH)
    prompt = config.prompts.max_tokens / 4
    use = step.uses[0]
    for entry in plan.entries if use.iteration == 1 and step.spec.kind != "sample" else ():
        if entry.arm == use.arm:  # what was imported is counted
            pairs = entry.manifest.rows["out"]
            length = entry.manifest.summary.get("length_mean", length)
    tokens = 0.0
    match step.spec.kind:
        case "sample":
            tokens = float((step.settings.rows or pairs) * step.settings.sampler.k * length)
        case "reference":
            tokens = 2 * pairs * (prompt + length)
        case "logprobs":
            tokens = 2.0 * (config.prompts.heldout or 0) * config.evaluate.k * (prompt + length)
        case "train":
            tokens = 2 * pairs * (prompt + length) * config.trainer.epochs
    return Work(prompt=prompt, length=length, tokens=tokens)


def _units(step: Step, plan: Plan, config: Config, prompts: int) -> float | None:
    """Return the ordered pairs that a score judges, or the responses that are embedded; None for other steps.

    Those of an embedded oracle take seconds and are not counted.
    """
    if step.spec.kind not in UNITS:
        return None
    if step.spec.kind == "score" and step.settings.oracle.kind in EMBEDDED:
        return 0.0
    if "opponents" in step.inputs:
        return 2.0 * (config.prompts.heldout or 0) * config.evaluate.k**2
    sampled = plan.steps.get(step.inputs["samples"])  # None where samples were imported
    k = sampled.settings.sampler.k if sampled else config.sampler.k
    if step.spec.kind == "embed":
        return float(prompts * k)
    rows, anchors = (sampled.settings.rows if sampled else None) or prompts, step.settings.anchors
    return float(rows * (anchors * (2 * k - anchors - 1) if anchors else k * (k - 1)))


def _disk(step: Step, config: Config, weights: int, tokens: float) -> tuple[float, float]:
    """Return the bytes that an artifact keeps, and those that its step needs beside them while it runs.

    A policy is published in publish_dtype; a checkpoint has fp32 weights and what the optimizer keeps for them, and is
    not counted where adapters alone are trained.
    """
    trainer = config.trainer
    match step.spec.kind:
        case "train":
            checkpoint = weights * (4 + MOMENTS[trainer.optimizer]) if trainer.adapter.name == "off" else 0
            return float(weights * (4 if trainer.publish_dtype == "float32" else 2)), float(CHECKPOINTS * checkpoint)
        case "sample":
            return tokens * 12, 0.0
        case "score":
            return tokens * 0.1, 0.0
    return 1e5, 0.0
