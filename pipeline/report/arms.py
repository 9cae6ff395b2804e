"""The arms that a report is of: every run.json below the runs that were named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline import book
from pipeline.artifact import Artifact
from pipeline.config import diagnostics_of
from pipeline.diagnostics import rules
from pipeline.diagnostics.panel import Panel, panels
from pipeline.errors import DataError
from pipeline.job import Input
from pipeline.report.table import Steps, iterations, said, with_setup


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A run, or an arm of a multirun."""

    run: str
    """As it was named: `myrun`, or `myrun/experiment=sppo`."""
    name: str
    """`experiment=sppo`; '' of a single run."""
    folder: Path
    store: Path

    @cached_property
    def every(self) -> dict[int, Steps]:
        """Return iteration -> label -> manifest; 0 is what comes before the first iteration."""
        return iterations(self.folder, self.store)

    @property
    def done(self) -> dict[int, Steps]:
        """Return the iterations from 1 on, with what came before in the first one."""
        return with_setup(self.every)

    @cached_property
    def panels(self) -> list[Panel]:
        """Return the collapse panel of each iteration from 1 on."""
        return panels(self.every, self.store)

    @cached_property
    def fired(self) -> list[rules.Fired]:
        """Return the rules that fire, by the thresholds that the run was begun with."""
        return rules.warnings(self.panels, diagnostics_of(self.folder))

    @cached_property
    def said(self) -> dict[int, list[str]]:
        """Return iteration -> what a person should know beside its figures."""
        return said(self.every, self.fired)

    def opened(self, t: int, label: str) -> Input | None:
        """Return the artifact of a step of iteration t, None where it is not made."""
        manifest = self.every.get(t, {}).get(label)
        if manifest is None:
            return None
        return Artifact(self.store, manifest.step, manifest.fingerprint).as_input(label, manifest)


def find(runs: Path, names: Sequence[str]) -> list[Arm]:
    """Return the arms of the runs `names` below `runs` that have made something; DataError for a name without."""
    found = {arm.folder: arm for name in names for arm in _of(runs, name)}
    return list(found.values())


def _of(runs: Path, name: str) -> list[Arm]:
    folder = runs / name
    books = {path.parent: book.checked(path.parent) for path in sorted(folder.rglob("run.json"))}
    if not books:
        begun = sorted(path.name for path in runs.glob("*") if path.is_dir())
        raise DataError(f"{folder}: no such run. Begun in {runs}: {', '.join(begun) or 'none'}.")
    arms = [
        Arm(run=name, name=str(place.relative_to(folder)).removeprefix("."), folder=place, store=Path(content["store"]))
        for place, content in books.items()
        if content.get("steps")
    ]
    for arm in arms:
        if not arm.store.is_dir():
            raise DataError(f"{arm.folder}: its store {arm.store} is not there; bring it back, or run it again.")
        if not arm.every:
            raise DataError(missing(arm))
    if not arms:
        raise DataError(f"{folder}: nothing is made yet; `sparring status {name}` shows what is missing.")
    return arms


def missing(arm: Arm) -> str:
    """Return the line on artifacts of a run that its store has lost, or has damaged; '' where all are there."""
    made = book.checked(arm.folder)["steps"]
    gone = [f"{t}/{label}" for t, row in made.items() for label in row if label not in arm.every.get(int(t), {})]
    named = ", ".join(gone[:3]) + (" ..." if len(gone) > 3 else "")
    remedy = "`sparring verify` names them, `sparring run` makes them again."
    return f"{arm.folder}: {len(gone)} artifacts are missing or damaged ({named}); {remedy}" if gone else ""


def labels(arms: Sequence[Arm]) -> list[str]:
    """Return a name for each arm: its own, with its run's before it where there are several runs."""
    runs = {arm.run for arm in arms}
    return [arm.run if not arm.name else arm.name if len(runs) == 1 else f"{arm.run}/{arm.name}" for arm in arms]
