"""The record of a run, run.json: the fingerprint planned for each step of each iteration, which of them are made, and
links into the store.

The artifacts are the truth; a lost record is written again by the next `sparring run`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from sparring.pipeline.store.files import RUN_RECORD, write_text
from sparring.pipeline.store.manifest import Manifest
from sparring.stages.errors import DataError

Key = tuple[int, str]
"""(iteration, label)."""
Iteration = Annotated[int, Field(ge=0)]
"""0 is what comes before the first iteration."""
WRITE_AGAIN = (
    "repeat the `sparring run` that began this run: it writes the file again and makes no finished step again."
)


@dataclass(frozen=True, kw_only=True)
class MadeStep:
    """A step that the run has made."""

    fingerprint: str
    content: str = ""
    """Digest of the artifact's bytes."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of run.json."""

    overrides: list[str] = field(default_factory=list)
    """Those that the run was begun with."""
    store: str = ""
    """Where its artifacts are; '' where there is no record."""
    pins: dict[str, str] = field(default_factory=dict)
    """model:repo@revision -> commit, of revisions that are not commits."""
    planned: dict[Iteration, dict[str, str]] = field(default_factory=dict)
    """iteration -> label -> fingerprint, made or not."""
    steps: dict[Iteration, dict[str, MadeStep]] = field(default_factory=dict)
    """iteration -> label -> what is made."""
    planned_s: dict[Iteration, dict[str, float]] = field(default_factory=dict)
    """iteration -> label -> seconds that the step was to take, of the plan that was last before it was made."""


_TYPES = TypeAdapter(RunRecord)


def read(folder: Path) -> RunRecord:
    """Return the record of the run in `folder`, an empty one where there is none that can be read."""
    with contextlib.suppress(OSError, ValidationError):
        return _TYPES.validate_json((folder / RUN_RECORD).read_bytes())
    return RunRecord()


def records(folder: Path) -> list[Path]:
    """Return the paths of the records of a run, its own first, then those of its arms."""
    return [*folder.glob(RUN_RECORD), *sorted(folder.glob(f"*/{RUN_RECORD}"))]


def checked(folder: Path) -> RunRecord:
    """Return the record of the run in `folder`; DataError when it is not there, or not what `sparring run` writes."""
    record = read(folder)
    if not record.store:
        raise DataError(f"{folder / RUN_RECORD}: the record of the run is missing or damaged; {WRITE_AGAIN}")
    return record


def begin(
    folder: Path,
    planned: Mapping[Key, str],
    config: str,
    overrides: Sequence[str],
    store: str,
    pins: Mapping[str, str],
    planned_s: Mapping[Key, float] | None = None,
) -> None:
    """Write the configuration; forget the steps of another configuration, and keep those of more iterations of this.

    planned: (iteration, label) -> fingerprint of the plan that begins. pins: the commits of the hub's revisions.
    planned_s: (iteration, label) -> seconds, of the steps that are to be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", config)
    before = read(folder)
    steps, seconds = before.steps, before.planned_s
    made = {(t, label): step.fingerprint for t, row in steps.items() for label, step in row.items()}
    if any(planned.get(key, fingerprint) != fingerprint for key, fingerprint in made.items()):
        steps, seconds = {}, {}
        for path in folder.glob("iter-*"):
            shutil.rmtree(path)
    rows: dict[int, dict[str, str]] = {}
    for (t, label), fingerprint in sorted(planned.items()):
        rows.setdefault(t, {})[label] = fingerprint
    for (t, label), planned_seconds in (planned_s or {}).items():
        seconds.setdefault(t, {})[label] = planned_seconds
    record = RunRecord(
        overrides=list(overrides), store=store, pins=dict(pins), planned=rows, steps=steps, planned_s=seconds
    )
    _write(folder, record)


def note(folder: Path, store: Path, key: Key, name: str, manifest: Manifest) -> None:
    """Note that step `key` is the artifact `name` and link it under iter-NN."""
    t, label = key
    record = read(folder)
    row = record.steps.setdefault(t, {})
    step = MadeStep(fingerprint=manifest.fingerprint, content=manifest.content)
    if row.get(label) != step:
        row[label] = step
        _write(folder, record)
    link, target = folder / f"iter-{t:02d}" / name, store.absolute() / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() == target.resolve():
        return
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(os.path.relpath(target, link.parent.absolute()))


def _write(folder: Path, record: RunRecord) -> None:
    content = asdict(record)
    for name in ("planned", "steps", "planned_s"):
        content[name] = {f"{t:02d}": row for t, row in content[name].items()}
    write_text(folder / RUN_RECORD, json.dumps(content, indent=1))
