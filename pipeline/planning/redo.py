"""Which finished steps were made with other code, and which ones `--redo` makes again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparring.pipeline.planning.plan import Plan, State
from sparring.pipeline.store.code_digest import code_of, differing
from sparring.stages.errors import ConfigError

SHOWN = 3
"""Files named in the message about changed code, per kind of step."""


@dataclass(frozen=True, kw_only=True)
class OtherCode:
    """The cached steps of a plan that were made with other code."""

    steps: int
    of: int
    """All cached steps."""
    files: Mapping[str, set[str]]
    """Kind of step -> files that differ."""

    def __str__(self) -> str:
        kinds = []
        for kind, files in self.files.items():
            more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
            kinds.append(f"{kind}: {', '.join(sorted(files)[:SHOWN])}{more}")
        redo = " ".join(f"--redo {kind}" for kind in self.files)
        return (
            f"{self.steps} of {self.of} cached steps were made with other code ({'; '.join(kinds)}). "
            f"`sparring run {redo}` makes them again."
        )


def other_code(plan: Plan, states: Mapping[str, State]) -> OtherCode | None:
    """Return the cached steps that were made with other code, None where there is none.

    Steps made by older versions, whose manifests do not name their code, are left out.
    """
    files: dict[str, set[str]] = {}
    steps = 0
    hits = {name: state.manifest for name, state in states.items() if state.kind == "hit" and state.manifest}
    for name, manifest in hits.items():
        step, made = plan.steps[name], manifest.made_with.get("modules")
        if isinstance(made, dict) and (differ := differing(made, code_of(step.spec, step.settings))):
            files.setdefault(step.spec.kind, set()).update(differ)
            steps += 1
    return OtherCode(steps=steps, of=len(hits), files=files) if steps else None


def redone(plan: Plan, requested: Sequence[str]) -> frozenset[str]:
    """Return the fingerprints of the steps that --redo names, by kind, label or artifact; ConfigError lists them."""
    names = {name: {step.spec.kind, step.name, *(use.label for use in step.uses)} for name, step in plan.steps.items()}
    for one in requested:
        if not any(one in own for own in names.values()):
            listed = sorted({name for key, own in names.items() for name in own - {plan.steps[key].name}})
            raise ConfigError(
                f"--redo {one}: this plan has no such step; choose from {', '.join(listed)}, or name an artifact of it."
            )
    return frozenset(name for name, own in names.items() if own & set(requested))
