"""A run as its record and the store have it: the one reader of a run on disk.

`open_run` and `open_arms` refuse a run of which the store has lost a part, so that a command says it before it
prints or writes anything. `sparring run` and `sparring status` alone read `recorded`, whatever is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sparring.pipeline.config.groups import CONF
from sparring.pipeline.runs import rules, run_record
from sparring.pipeline.runs.panel import Panel, panels
from sparring.pipeline.runs.run_record import WRITE_AGAIN, RunRecord
from sparring.pipeline.store.manifest import Artifact, CorruptManifest, Manifest
from sparring.pipeline.store.remote import opened
from sparring.stages.errors import DataError
from sparring.stages.fields import validator
from sparring.stages.step import Input

Steps = dict[str, Manifest]
"""label -> manifest of one iteration."""
UNREADABLE = (OSError, ValueError, TypeError, RecursionError, YAMLError, OmegaConfBaseException)
"""What reading a damaged YAML file raises."""


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """A run, or an arm of a multirun."""

    run: str
    """The name a user gave: `myrun`, or `myrun/experiment=sppo`."""
    arm: str = ""
    """`experiment=sppo`, where it is one of several below that name; ''."""
    folder: Path
    record: RunRecord

    @staticmethod
    def at(folder: Path) -> RunHistory:
        """Return the run whose record is in `folder`, while it is being made: what the record says is not checked."""
        return RunHistory(run=folder.name, folder=folder, record=run_record.read(folder))

    @property
    def name(self) -> str:
        """`myrun`, or `myrun/experiment=sppo`."""
        return f"{self.run}/{self.arm}" if self.arm else self.run

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration that the run was begun with; {} where it cannot be read."""
        with suppress(*UNREADABLE):
            return _yaml(self.folder / "config.yaml")
        return {}

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was begun with; DataError where it cannot be read."""
        if not self.settings:
            raise DataError(f"{self.folder / 'config.yaml'}: cannot be read; {WRITE_AGAIN}")
        return self.settings

    @property
    def diagnostics(self) -> rules.DiagnosticsConfig:
        """The thresholds that the run was begun with, those of conf/ where it recorded none."""
        path, defaults = self.folder / "config.yaml", _yaml(CONF / "config.yaml")["diagnostics"]
        try:
            recorded = _yaml(path).get("diagnostics", {})
            chosen = {name: recorded.get(name, default) for name, default in defaults.items()}
            return validator(rules.DiagnosticsConfig).validate_python(chosen)
        except (*UNREADABLE, AttributeError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"{path}: cannot be read ({first}); {WRITE_AGAIN}") from None

    @cached_property
    def store(self) -> Path:
        """Where its artifacts are on this node."""
        return opened(self.record.store)

    @cached_property
    def steps(self) -> dict[int, Steps]:
        """iteration -> label -> manifest of what the store has; 0 is what comes before the first iteration."""
        manifests: dict[int, Steps] = {}
        for t, label, artifact in self._recorded():
            with suppress(CorruptManifest):
                if manifest := artifact.manifest():
                    manifests.setdefault(t, {})[label] = manifest
        return manifests

    @property
    def iterations(self) -> dict[int, Steps]:
        """The steps of each iteration from 1 on; those before the first one belong to it here."""
        before = self.steps.get(0, {})
        return {t: {**before, **steps} if t == 1 else steps for t, steps in self.steps.items() if t > 0}

    @cached_property
    def panels(self) -> list[Panel]:
        """The collapse panel of each iteration from 1 on."""
        return panels(self.steps, self.store)

    @cached_property
    def warnings(self) -> list[rules.RuleWarning]:
        """The rules that fire, by the thresholds that the run was begun with."""
        return rules.warnings(self.panels, self.diagnostics)

    def manifest(self, t: int, label: str) -> Manifest | None:
        """Return the manifest of a step of iteration t, None where it is not made."""
        return self.steps.get(t, {}).get(label)

    def artifact(self, t: int, label: str) -> Input | None:
        """Return the artifact of a step of iteration t, None where it is not made; DataError where it was dropped."""
        manifest = self.manifest(t, label)
        if manifest is None:
            return None
        if why := self.dropped(t, label):
            group = "policies" if label == "train" else "samples"
            raise DataError(
                f"{self.name}, iteration {t}: the files of {manifest.name} were dropped ({why}). To make it again, "
                f"repeat the `sparring run` that began this run with keep.{group}=all and --redo {manifest.name}."
            )
        return Artifact(self.store, manifest.step, manifest.fingerprint).as_input(label, manifest)

    def dropped(self, t: int, label: str) -> str:
        """Return why files of a finished step of iteration t were dropped, '' where none were."""
        manifest = self.manifest(t, label)
        return Artifact(self.store, manifest.step, manifest.fingerprint).dropped(manifest) if manifest else ""

    def artifacts(self) -> Iterator[tuple[int, str, Manifest]]:
        """Yield iteration, label and manifest of every artifact; of one with two labels the first."""
        seen = set()
        for t, steps in self.steps.items():
            for label, manifest in steps.items():
                if manifest.fingerprint not in seen:
                    yield t, label, manifest
                seen.add(manifest.fingerprint)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events of the run, which all its arms share; lines that cannot be read are left out."""
        paths = (folder / "events.jsonl" for folder in (self.folder, *self.folder.parents))
        path = next((path for path in paths if path.is_file()), None)
        for line in path.read_bytes().splitlines() if path else ():
            with suppress(ValueError, RecursionError):  # the last one, while it is written
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event and isinstance(event.get("time"), int | float):
                    yield event

    def damage(self) -> str:
        """Return a line on what the run has made and the store has lost or damaged; '' without any."""
        if self.record.steps and not self.store.is_dir():
            where = "" if self.store.is_absolute() else ", or call this from the folder that the run was begun in"
            return f"{self.folder}: its store {self.store} is not there; bring it back{where}, or run it again."
        lost = [f"iteration {t}, {label}: {why}" for t, label, one in self._recorded() if (why := one.damage())]
        more = f" ({len(lost) - 1} other artifacts are lost or damaged too)" if len(lost) > 1 else ""
        remedy = (
            f"`sparring verify --store {self.store}` lists all of them; repeat the `sparring run` that began this run "
            "to make them again."
        )
        return f"{self.folder}: {lost[0]}{more}; {remedy}" if lost else ""

    def _recorded(self) -> Iterator[tuple[int, str, Artifact]]:
        """Yield iteration, label and artifact of what the record says is made, in the order of the iterations."""
        for t, row in sorted(self.record.steps.items()):
            for label, step in row.items():
                yield t, label, Artifact(self.store, label.partition("_")[0], step.fingerprint)


def recorded(runs: Path, name: str) -> list[RunHistory]:
    """Return what is recorded at or below the folder of a run, the run itself first; DataError where nothing is."""
    named, folder = Path(name), runs / name
    is_name = bool(named.parts) and not {"..", "/"} & {*named.parts}
    records = run_record.records(folder) if is_name else []
    if not records:
        raise _unknown(runs, folder if is_name else repr(name), named.parts[0] if is_name else "")
    return [
        RunHistory(
            run=str(named),
            arm=str(place.relative_to(folder)).removeprefix("."),
            folder=place,
            record=run_record.checked(place),
        )
        for place in (path.parent for path in records)
    ]


def open_run(runs: Path, name: str) -> RunHistory:
    """Return a run, or an arm of one (`myrun/experiment=sppo`); DataError where the store has lost a part of it."""
    first = recorded(runs, name)[0]
    if first.arm:
        raise _unknown(runs, runs / name, name)
    check_undamaged([first])
    return first


def open_arms(runs: Path, names: Sequence[str]) -> list[RunHistory]:
    """Return the arms of the runs `names` that have made something; DataError where a part of one is lost."""
    arms: dict[Path, RunHistory] = {}
    for name in names:
        made = [arm for arm in recorded(runs, name) if arm.record.steps]
        if not made:
            raise DataError(f"{runs / name}: nothing is made yet; `sparring status {name}` shows what is missing.")
        arms |= {arm.folder: arm for arm in made}
    check_undamaged(list(arms.values()))
    return list(arms.values())


def check_undamaged(arms: Sequence[RunHistory]) -> None:
    """DataError names the arms of which the store has lost or damaged something."""
    if lost := list(filter(None, (arm.damage() for arm in arms))):
        others = len(lost) - 1
        more = f" Something is lost of {others} other arm{'s' * (others > 1)}." if others else ""
        raise DataError(lost[0] + more)


def labels(arms: Sequence[RunHistory]) -> list[str]:
    """Return a name for each arm: its own, with its run's before it where there are several runs."""
    runs = {arm.run for arm in arms}
    return [arm.arm if arm.arm and len(runs) == 1 else arm.name for arm in arms]


def _unknown(runs: Path, name: Path | str, run: str) -> DataError:
    """Return the one error for a name that is no single run: it lists the arms of `run`, else all runs."""
    arms = [path.parent for path in run_record.records(runs / run)] if run else []
    existing = arms or [path for path in runs.glob("*") if path.is_dir()]
    listed = ", ".join(sorted(str(path.relative_to(runs)) for path in existing))
    return DataError(f"{name}: no such run or arm. In {runs} there are: {listed or 'none'}.")


def _yaml(path: Path) -> dict[str, Any]:
    """Return what a YAML file holds, {} where it is not there; one of UNREADABLE where it is damaged."""
    content: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    return {str(key): value for key, value in dict(content).items()}
