"""A run as its record and the store have it: the one reader of a run on disk.

`opened` and `find` refuse a run of which the store has lost a part, so that a command says it before it prints or
writes anything. `sparring run` alone looks at what is there and goes on: it makes the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparring.pipeline import book
from sparring.pipeline.config import config_of, diagnostics_of
from sparring.pipeline.diagnostics import rules
from sparring.pipeline.diagnostics.panel import Panel, panels
from sparring.pipeline.store.manifest import Artifact, CorruptManifest, Manifest
from sparring.stages.errors import DataError
from sparring.stages.step import Input

Steps = dict[str, Manifest]
"""label -> manifest of one iteration."""


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """A run, or an arm of a multirun."""

    run: str
    """As it was named: `myrun`, or `myrun/experiment=sppo`."""
    arm: str
    """`experiment=sppo`, where it is one of several below the name; ''."""
    folder: Path
    record: dict[str, Any]
    """run.json."""

    @property
    def name(self) -> str:
        """`myrun`, or `myrun/experiment=sppo`."""
        return f"{self.run}/{self.arm}" if self.arm else self.run

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return the configuration that it was begun with; DataError where that cannot be read."""
        found = config_of(self.folder)
        if not found:
            raise DataError(f"{self.folder / 'config.yaml'}: cannot be read; the same `sparring run` again writes it.")
        return found

    @property
    def store(self) -> Path:
        """Where its artifacts are."""
        return Path(self.record["store"])

    @property
    def pins(self) -> dict[str, str]:
        """Return model:repo@revision -> commit, of revisions that are not commits."""
        return dict(self.record.get("pins", {}))

    @property
    def planned(self) -> dict[int, dict[str, str]]:
        """Return iteration -> label -> fingerprint, made or not."""
        return {int(t): row for t, row in self.record.get("planned", {}).items()}

    @cached_property
    def every(self) -> dict[int, Steps]:
        """Return iteration -> label -> manifest of what the store has; 0 is what comes before the first iteration."""
        return iterations(self.record, self.store)

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

    def manifest(self, t: int, label: str) -> Manifest | None:
        """Return the manifest of a step of iteration t, None where it is not made."""
        return self.every.get(t, {}).get(label)

    def opened(self, t: int, label: str) -> Input | None:
        """Return the artifact of a step of iteration t, None where it is not made."""
        manifest = self.manifest(t, label)
        if manifest is None:
            return None
        return Artifact(self.store, manifest.step, manifest.fingerprint).as_input(label, manifest)

    def lost(self) -> str:
        """Return the line on what the run has made and the store no longer has, or has damaged; '' without any."""
        if self.record["steps"] and not self.store.is_dir():
            where = "" if self.store.is_absolute() else ", or call this from the folder that the run was begun in"
            return f"{self.folder}: its store {self.store} is not there; bring it back{where}, or run it again."
        lost = [
            f"iteration {t}, {label}: {why}"
            for t, label, artifact in _made(self.record, self.store)
            if (why := artifact.damage())
        ]
        more = f", and so are {len(lost) - 1} other artifacts" if len(lost) > 1 else ""
        remedy = (
            f"`sparring verify --store {self.store}` names what is damaged, the same `sparring run` makes it again."
        )
        return f"{self.folder}: {lost[0]}{more}; {remedy}" if lost else ""


def begun(runs: Path, run: str) -> list[RunHistory]:
    """Return what is recorded at or below the folder of a run, that of the run itself first, whatever is lost of it."""
    named, folder = Path(run), runs / run
    is_name = bool(named.parts) and not {"..", "/"} & {*named.parts}
    records = book.records(folder) if is_name else []
    if not records:
        there = ", ".join(sorted(path.name for path in runs.glob("*") if path.is_dir()))
        raise DataError(f"{folder if is_name else repr(run)}: no such run. Begun in {runs}: {there or 'none'}.")
    return [
        RunHistory(
            run=str(named),
            arm=str(place.relative_to(folder)).removeprefix("."),
            folder=place,
            record=book.checked(place),
        )
        for place in (path.parent for path in records)
    ]


def opened(runs: Path, run: str) -> RunHistory:
    """Return a run, or an arm of one (`myrun/experiment=sppo`); DataError where it has lost what it made."""
    folder, found = runs / run, begun(runs, run)
    if found[0].folder != folder:
        raise DataError(f"{folder}: no such run. Its arms: {', '.join(one.name for one in found)}.")
    return whole(found[:1])[0]


def find(runs: Path, names: Sequence[str]) -> list[RunHistory]:
    """Return the arms of the runs `names` below `runs` that have made something; DataError where one is lost."""
    found: dict[Path, RunHistory] = {}
    for name in names:
        arms = [arm for arm in begun(runs, name) if arm.record["steps"]]
        if not arms:
            raise DataError(f"{runs / name}: nothing is made yet; `sparring status {name}` shows what is missing.")
        found |= {arm.folder: arm for arm in arms}
    return whole(list(found.values()))


def iterations(record: Mapping[str, Any], store: Path) -> dict[int, Steps]:
    """Return iteration -> label -> manifest of what a record names and the store has."""
    found: dict[int, Steps] = {}
    for t, label, artifact in _made(record, store):
        with suppress(CorruptManifest):
            if manifest := artifact.manifest():
                found.setdefault(t, {})[label] = manifest
    return found


def with_setup(found: dict[int, Steps]) -> dict[int, Steps]:
    """Return the iterations from 1 on; what came before the first one is counted as its cost."""
    return {t: {**found.get(0, {}), **steps} if t == 1 else steps for t, steps in found.items() if t > 0}


def labels(arms: Sequence[RunHistory]) -> list[str]:
    """Return a name for each arm: its own, with its run's before it where there are several runs."""
    runs = {arm.run for arm in arms}
    return [arm.arm if arm.arm and len(runs) == 1 else arm.name for arm in arms]


def whole(arms: list[RunHistory]) -> list[RunHistory]:
    """Return the arms; DataError names those of which something is lost."""
    if lost := list(filter(None, (arm.lost() for arm in arms))):
        others = len(lost) - 1
        more = f" Something is lost of {others} other arm{'s' * (others > 1)}." if others else ""
        raise DataError(lost[0] + more)
    return arms


def _made(record: Mapping[str, Any], store: Path) -> Iterator[tuple[int, str, Artifact]]:
    """Yield iteration, label and artifact of what a record says is made, in the order of the iterations."""
    for t, row in sorted(record.get("steps", {}).items(), key=lambda item: int(item[0])):
        for label, entry in row.items():
            yield int(t), label, Artifact(store, label.partition("_")[0], entry["fingerprint"])
