"""The steps of a plan, and what the store says of each: hit, miss, resume or stale, and why.

Neither Ray nor torch is loaded here: planning, `status` and a run with nothing to do stay instant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sparring.pipeline.config.model import Config
from sparring.pipeline.planning.imported import Entry
from sparring.pipeline.store.manifest import Artifact, CorruptManifest, Manifest
from sparring.stages import fields
from sparring.stages.fingerprint import artifact_name
from sparring.stages.step import Input, StepSpec, Workers


@dataclass(frozen=True, kw_only=True)
class Use:
    """One place of a step in an arm: (arm, iteration, label)."""

    arm: str
    iteration: int
    label: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the plan."""

    spec: StepSpec
    settings: Any
    """A frozen dataclass beside the StepSpec."""
    workers: Workers = field(default_factory=Workers)
    inputs: dict[str, str]
    """role -> name: the fingerprint of a step, or the digest of an external input."""
    fingerprint: str
    uses: list[Use] = field(default_factory=list)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What its fingerprint is made of."""
        return fields.identity(self.settings)

    @property
    def name(self) -> str:
        """`sample-1f2e3d4c`."""
        return artifact_name(self.spec.kind, self.fingerprint)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of all arms in an order that can be executed, shared ones once."""

    steps: dict[str, Step]
    externals: dict[str, Input]
    configs: dict[str, Config]
    """arm -> configuration."""
    entries: list[Entry] = field(default_factory=list)
    """What stands where a step of an arm's first iteration would."""
    train_prompts: dict[str, int | None] = field(default_factory=dict)
    """arm -> prompts to train on, before those that are too long are dropped; None where they are not here."""
    pins: dict[str, str] = field(default_factory=dict)
    """model:repo@revision -> commit, of revisions that are not commits."""
    assumed: list[str] = field(default_factory=list)
    """What the hub was to be asked and did not answer: a plan to be shown, not executed."""

    def arm(self, arm: str) -> list[tuple[Use, Step]]:
        """Return the steps of one arm in order."""
        return [(use, step) for step in self.steps.values() for use in step.uses if use.arm == arm]

    def base_policy(self, arm: str) -> Input | None:
        """Return the policy that an arm begins with; None where its plan has no step `prompts`."""
        names = (step.inputs.get("policy", "") for use, step in self.arm(arm) if use.label == "prompts")
        return self.externals.get(next(names, ""))


@dataclass(frozen=True, kw_only=True)
class State:
    """What the store says of a step."""

    kind: str
    """hit, miss, resume (some shards are there) or stale."""
    why: str = ""
    manifest: Manifest | None = None
    dropped: bool = False
    """Whether files of the artifact were removed to free disk: it is a hit unless a step that is to do reads it."""
    follows: bool = False
    """Whether it is stale only because an input is to be made again: of the same bytes, it is a hit after all."""


def inspect(plan: Plan, store: Path, redo: frozenset[str] = frozenset()) -> dict[str, State]:
    """Return fingerprint -> state for all steps; reads manifests and file sizes only. redo: those to make again."""
    states: dict[str, State] = {}
    for name, step in plan.steps.items():
        state = step_state(plan, step, Artifact(store, step.spec.kind, name), states)
        states[name] = to_redo(state) if name in redo else state
    for name, step in reversed(plan.steps.items()):  # a step comes after those that it reads
        if states[name].kind != "hit" and not states[name].follows:
            for source in step.inputs.values():
                if source in states and states[source].kind == "hit" and states[source].dropped:
                    states[source] = replace(
                        states[source], kind="stale", why=f"{states[source].why}; {step.name} reads it"
                    )
    return states


def to_redo(state: State) -> State:
    """Return the state of a step that is to be made again: what is there is stale."""
    return replace(state, kind="stale", why="--redo") if state.kind == "hit" else state


def step_state(plan: Plan, step: Step, artifact: Artifact, states: Mapping[str, State]) -> State:
    """Return the state of one step, given those of the steps before it. A hit needs its definition and its inputs."""
    try:
        manifest = artifact.manifest()
    except CorruptManifest as error:
        return State(kind="stale", why=str(error))
    if manifest is None:
        begun = artifact.begun()
        why = f"{artifact.path.name} was begun" if begun else "never made"
        return State(kind="resume" if begun else "miss", why=why)
    for role, name in step.inputs.items():
        current = input_digest(plan, name, states)
        if current is None:
            why = f"input {role} ({plan.steps[name].name}) is to be redone"
            return State(kind="stale", why=why, manifest=manifest, follows=True)
        if manifest.inputs.get(role, {}).get("digest") != current:
            return State(kind="stale", why=f"input {role} changed bytes", manifest=manifest)
    if damaged := next(artifact.damaged_files(manifest), None):
        return State(kind="stale", why=damaged, manifest=manifest)
    dropped = artifact.dropped(manifest)
    return State(kind="hit", why=f"dropped ({dropped})" if dropped else "", manifest=manifest, dropped=bool(dropped))


def input_digest(plan: Plan, name: str, states: Mapping[str, State]) -> str | None:
    """Return the content digest of an input as it is now, None when it is yet to be made."""
    if name in plan.externals:
        return name
    state = states[name]
    return state.manifest.content if state.kind == "hit" and state.manifest else None


def explain(step: Step, manifests: Sequence[Manifest]) -> list[str]:
    """Return how `step` differs from the nearest existing artifact of its kind: `trainer.lr: 5e-07 -> 1e-05`."""
    nearest: list[str] | None = None
    for manifest in manifests:
        before = {"version": manifest.version, **manifest.identity}
        changed = fields.differences(before, {"version": step.spec.version, **step.identity})
        inputs = {role: entry.get("name") for role, entry in manifest.inputs.items()}
        differing = [f"{key}: {old} -> {new}" for key, old, new in changed] + [
            f"input {role} is another"
            for role in sorted({*inputs, *step.inputs})
            if inputs.get(role) != step.inputs.get(role)
        ]
        if nearest is None or len(differing) < len(nearest):
            nearest = differing
    return ["nothing of this kind in the store"] if nearest is None else nearest
