"""Which artifacts of a store runs refer to, and the removal of all others.

A store knows the folders of the runs that use it (`store/.runs/`). An artifact is kept where the record of a run there
has it, planned or made; where answers or an import were made of it; where one that is kept was made of it; where it was
imported. A run that begins meanwhile is safe: it writes its record, then waits for the lease of a removal, which reads
the records after it has taken that lease.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sparring.pipeline.runs import run_record
from sparring.pipeline.store.files import LEASES, write_text
from sparring.pipeline.store.lease import ABANDONED_S, Lease, LeaseHeld, file_clock, holder_of
from sparring.pipeline.store.manifest import MANIFEST, Artifact, CorruptManifest, Manifest, fingerprint_of
from sparring.pipeline.store.staging import STAGED
from sparring.stages.errors import DataError
from sparring.stages.fingerprint import artifact_name

RUNS = ".runs"
"""Folder in a store: a file for each folder of runs that use it, with its path."""
IMPORTS = ".imports"
"""Folder in a store: events, logs and plans of imports."""
PLAN = "plan."
"""How the name of a file begins that lists the artifacts of a plan which is of no run's record."""
ANSWERS = Path("answers", "logs")
"""Folder in that of a run: events, logs and plans of its answers."""
YOUNG_S = ABANDONED_S
"""Seconds since its last change in which an artifact is left alone, whoever refers to it."""


def register(store: Path, runs: Path) -> None:
    """Note that runs in a folder use the store."""
    path = store / RUNS / hashlib.sha256(str(runs.absolute()).encode()).hexdigest()[:16]
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_text(path, str(runs.absolute()))


def note_plan(folder: Path, names: Iterable[str]) -> None:
    """Note the artifacts of a plan that is of no run's record, in the folder of its logs."""
    listed = json.dumps(sorted(names))
    path = folder / f"{PLAN}{hashlib.sha256(listed.encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, listed)


def wait_for_removal(store: Path, waiting: Callable[[str], None]) -> bool:
    """Wait until nobody removes anything from the store; return whether somebody did. Call it after what is needed is
    noted. waiting: gets the holder and how long it is waited for.
    """
    path = _lease(store)
    if not path.exists():
        return False
    Lease(path, "run").acquire(wait=True, waiting=waiting).release()
    return True


def removal(store: Path) -> Lease:
    """Return the lease of a removal, which is acquired; LeaseHeld where another one has it."""
    return Lease(_lease(store), "sparring gc").acquire(wait=False)


def _lease(store: Path) -> Path:
    return store / LEASES / "gc.json"


@dataclass(frozen=True, kw_only=True)
class Unused:
    """What no run refers to."""

    artifacts: list[tuple[Path, int]]
    """Folders, with their bytes; those without a manifest are not finished."""
    left: list[tuple[Path, int]]
    """Folders that killed exports and syncs have left among the runs."""
    leases: list[Path]
    """Of holders that have ended."""
    kept: int
    young: int
    """Artifacts that nobody refers to and that are left alone since they were changed in the last YOUNG_S."""
    runs: int
    folders: list[Path]
    """Where these runs are."""


def unused(store: Path, runs: Path) -> Unused:
    """Return what may be removed from a store, and from the folders of its runs; runs: one more of these folders.

    DataError where a folder of runs, or the record of one, cannot be read: it may refer to anything.
    """
    folders = _folders(store, runs)
    records = _records(folders)
    referred = {name for path in records for name in _of_record(path)}
    plans = [*(store / IMPORTS).glob(f"{PLAN}*.json")]
    plans += [path for one in records for path in (one.parent / ANSWERS).glob(f"{PLAN}*.json")]
    referred |= {name for path in plans for name in _of_plan(path)}
    artifacts = sorted(path for path in store.glob("*-????????") if path.is_dir())
    kept = _with_inputs(artifacts, referred)
    now = file_clock(store / LEASES)
    others = [path for path in artifacts if path.name not in kept]
    young = [path for path in others if now - _changed(path) < YOUNG_S]
    leases = sorted((store / LEASES).glob("*.json"))
    staged = [path for one in records for path in one.parent.glob(f".*{STAGED}.json") if _is_dead(path)]
    return Unused(
        artifacts=[(path, size_of(path)) for path in others if path not in young],
        left=[(path.with_suffix(""), size_of(path.with_suffix(""))) for path in staged],
        leases=[path for path in leases if _is_dead(path)],
        kept=len(artifacts) - len(others),
        young=len(young),
        runs=len(records),
        folders=folders,
    )


def of_runs(store: Path, runs: Path, without: Path) -> set[str]:
    """Return the names of the artifacts that the records of runs have; without: the folder of a run that is left out.

    DataError as of `unused`.
    """
    own = without.absolute()
    records = [path for path in _records(_folders(store, runs)) if not path.absolute().is_relative_to(own)]
    return {name for path in records for name in _of_record(path)}


def _records(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in [*folder.glob("*/run.json"), *folder.glob("*/*/run.json")]]


def remove(found: Unused, store: Path) -> Iterator[str]:
    """Remove what was found unused while `removal` was held; yield a line for each artifact that is in use."""
    for path, _ in found.artifacts:
        artifact = Artifact(store, path.name.rpartition("-")[0], fingerprint_of(path / MANIFEST))
        artifact.path, artifact.lease = path, store / LEASES / f"{path.name}.json"
        try:
            with Lease(artifact.lease, "sparring gc").acquire(wait=False):
                artifact.set_aside()
        except LeaseHeld as holder:
            yield f"{path}: kept, {holder} has it"
    for lease in [*found.leases, *(path.with_name(f"{path.name}.json") for path, _ in found.left)]:
        with suppress(LeaseHeld), Lease(lease, "sparring gc").acquire(wait=False):
            if lease.name.endswith(f"{STAGED}.json"):
                shutil.rmtree(lease.with_suffix(""), ignore_errors=True)


def _folders(store: Path, runs: Path) -> list[Path]:
    """Return the folders of runs that use the store; DataError where one is not there."""
    folders = [runs.absolute()] if runs.is_dir() else []
    for path in sorted((store / RUNS).glob("*")):
        folder = Path(path.read_text(encoding="utf-8"))
        if not folder.is_dir():
            raise DataError(
                f"{folder}: runs in this folder used the store {store}, and it is not here, so what they need is not "
                f"known. Bring it back, call this where it is seen, or, if it is gone for good, remove {path}."
            )
        folders.append(folder)
    if not folders:
        raise DataError(f"--runs {runs}: there is no such folder, and {store} knows of none; name that of the runs.")
    return list(dict.fromkeys(folders))


def _of_record(path: Path) -> Iterator[str]:
    record = run_record.checked(path.parent)
    for row in record.planned.values():
        yield from (artifact_name(label.partition("_")[0], fingerprint) for label, fingerprint in row.items())
    for made in record.steps.values():
        yield from (artifact_name(label.partition("_")[0], step.fingerprint) for label, step in made.items())


def _of_plan(path: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(path.read_bytes())]
    except (ValueError, TypeError, RecursionError):
        raise DataError(
            f"{path}: cannot be read, so what was made there is not known; remove it if that is not needed."
        ) from None


def _with_inputs(artifacts: Sequence[Path], referred: set[str]) -> set[str]:
    """Return the names of the artifacts that are referred to or were imported, and of all that they were made of."""
    manifests = {path.name: _manifest(path) for path in artifacts}
    by_digits = {name.rpartition("-")[2]: name for name in manifests}
    kept: set[str] = set()
    todo = [name for name, one in manifests.items() if name in referred or (one and one.imported)]
    while todo:
        name = todo.pop()
        if name not in kept:
            kept.add(name)
            made = manifests[name]
            inputs = [entry["name"][:8] for entry in made.inputs.values()] if made else []
            todo += [by_digits[digits] for digits in inputs if digits in by_digits]
    return kept


def _manifest(path: Path) -> Manifest | None:
    with suppress(CorruptManifest):
        return Artifact(path.parent, path.name.rpartition("-")[0], fingerprint_of(path / MANIFEST)).manifest()
    return None


def _changed(folder: Path) -> float:
    """Return when a folder, or what is directly in it, was last changed."""
    times = [folder.stat().st_mtime]
    for path in folder.iterdir():
        with suppress(OSError):  # removed meanwhile
            times.append(path.lstat().st_mtime)
    return max(times)


def _is_dead(lease: Path) -> bool:
    """Return whether the holder of a lease has ended; of a file that is no lease, whether it is old."""
    holder = holder_of(lease)
    if holder:
        return not holder.is_alive if holder.here else holder.silent_s > YOUNG_S  # then it is taken over at once
    with suppress(OSError):
        return file_clock(lease.parent) - lease.stat().st_mtime > YOUNG_S
    return False


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total
