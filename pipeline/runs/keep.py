"""Retention: drops what the group `keep` does not keep, once an iteration is evaluated.

An artifact is dropped only where no step that is still to be made reads it, in whatever arm, and no other run of the
store refers to it. Its manifest stays, and with it what reports read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from sparring.pipeline.planning.plan import Plan, Step
from sparring.pipeline.runs import references
from sparring.pipeline.runs.config import Kept
from sparring.pipeline.runs.panel import METRICS
from sparring.pipeline.store.lease import Lease, LeaseHeld
from sparring.pipeline.store.manifest import Artifact, Manifest
from sparring.stages.errors import DataError
from sparring.stages.plain import size_text

LABELS = {"policies": ("train",), "samples": ("sample", "sample_best")}
"""Key of the group -> labels of the steps that it is about."""


class Retention:
    """Applies `keep` to the arms of a run while their steps are finished one by one."""

    def __init__(self, plan: Plan, run: Path, store: Path, message: Callable[[str], None]) -> None:
        self.plan, self.run, self.store, self.message = plan, run, store, message
        self.finished: dict[str, Manifest] = {}
        self.wanted = any(
            kept != "all" for one in plan.configs.values() for kept in (one.keep.policies, one.keep.samples)
        )

    def step_done(self, step: Step, manifest: Manifest) -> None:
        """Drop what is not kept now that this step is finished too."""
        self.finished[step.fingerprint] = manifest
        if not self.wanted:
            return
        read = {
            source
            for one in self.plan.steps.values()
            if one.fingerprint not in self.finished
            for source in one.inputs.values()
        }
        dropped = {name: why for name, why in self._not_kept() if name not in read}
        if dropped and (others := self._of_other_runs()) is not None:
            for name, why in dropped.items():
                if self.plan.steps[name].name not in others:
                    self._drop(self.plan.steps[name], self.finished[name], why)

    def _not_kept(self) -> Iterator[tuple[str, str]]:
        """Yield (fingerprint, why) of the finished steps that no arm of the plan keeps."""
        kept: set[str] = set()
        others: dict[str, str] = {}
        for arm, config in self.plan.configs.items():
            made = {(use.iteration, use.label): step.fingerprint for use, step in self.plan.arm(arm)}
            evaluated = [t for (t, label), name in made.items() if label == "evaluate" and name in self.finished]
            for key, labels in LABELS.items():
                choice: Kept = getattr(config.keep, key)
                stay = self._iterations(arm, choice, evaluated)
                for (t, label), name in made.items():
                    if label in labels and name in self.finished:
                        if t in stay or t > max(evaluated, default=0):
                            kept.add(name)
                        else:
                            others[name] = f"keep.{key}={choice}"
        yield from ((name, why) for name, why in others.items() if name not in kept)

    def _iterations(self, arm: str, choice: Kept, evaluated: list[int]) -> set[int]:
        """Return which of the evaluated iterations are kept."""
        if choice == "all" or not evaluated:
            return set(evaluated)
        last = {max(evaluated)}
        if choice == "last":
            return last
        rates = {t: rate for t in evaluated if (rate := self._second_judge(arm, t)) is not None}
        best = max(sorted(rates), key=rates.__getitem__, default=None)
        return set(evaluated) if best is None else last | {best}

    def _second_judge(self, arm: str, t: int) -> float | None:
        """Return the win rate of iteration t against the base by the second judge."""
        made = {use.iteration: step.fingerprint for use, step in self.plan.arm(arm) if use.label == "evaluate"}
        rows = self.finished[made[t]].summary.get("comparisons", ())
        found = [row["win_rate"] for row in rows if (row["judge"], row["opponent"]) == ("second", "base")]
        return found[0] if found else None

    def _of_other_runs(self) -> set[str] | None:
        """Return the names of the artifacts that other runs refer to; None, and a message, where that is not known."""
        try:
            return references.of_runs(self.store, self.run.parent, without=self.run)
        except DataError as error:
            self.message(f"nothing is dropped, although `keep` says so: {error}")
            self.wanted = False
            return None

    def _drop(self, step: Step, manifest: Manifest, why: str) -> None:
        artifact = Artifact(self.store, step.spec.kind, step.fingerprint)
        files = [file for file in manifest.files if file.name != METRICS]
        names = [file.name for file in files]
        if not any((artifact.path / file.path).exists() for file in files) or artifact.manifest() != manifest:
            return
        with suppress(LeaseHeld), Lease(artifact.lease, f"run {self.run.name}").acquire(wait=False):
            freed = artifact.drop(manifest, names, why)
            self.message(f"{step.name} of iteration {step.uses[0].iteration} dropped, {size_text(freed)} ({why})")
