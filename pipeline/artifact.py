"""Artifacts: shards that are renamed into place, and a manifest that is created last, exclusively.

    store/pairs-3f9c2a1b/manifest.json             with a valid one the artifact is done; nothing else is state
    store/pairs-3f9c2a1b/part-00007.<attempt>.parquet
    store/pairs-3f9c2a1b/part-00007.<attempt>.json what the shard's manifest row will say, until the manifest says it

Every attempt writes files of its own name. The first manifest wins (link() fails when the name exists) and the loser
adopts it, so that two writers by mistake cost work and never bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sparring.stages import fields
from sparring.stages.errors import ConfigError, DataError, SparringError, full_disk
from sparring.stages.fingerprint import digest
from sparring.stages.step import File, Input, Job, Part, Shard, naming, sha256_file

MANIFEST = "manifest.json"
LEASES = ".leases"
RECORDS = ("run.json", "events.jsonl", "config.yaml", "report.html")
"""What the folder of a run holds."""
LONGEST_BELOW = 256
"""Bytes of path that the store and a run may need below their folder."""
_PART = re.compile(r"part-(\d{5})\.([0-9a-z]+)\.json$")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact says of itself."""

    fingerprint: str
    step: str
    version: int
    identity: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    """role -> {name: fingerprint or digest of the definition, digest: content read}."""
    files: tuple[File, ...]
    rows: dict[str, Any]
    """{in, out, dropped: {reason: count}}."""
    summary: dict[str, Any]
    seconds: float
    """Work in all attempts that are part of the artifact, over the workers side by side: wall time if never stopped."""
    stats: dict[str, float]
    attempts: list[str]
    made_with: dict[str, Any]
    """Code version, packages, hardware, creation time."""

    @property
    def content(self) -> str:
        """Digest of the artifact's bytes, independent of attempts and of the time it was made."""
        return content_digest(self.files)

    def setting(self, key: str, default: Any = None) -> Any:
        """Return a setting that it was made with, such as `sampler.k`; `default` where there is none."""
        return fields.setting(self.identity, key, default)

    @property
    def imported(self) -> bool:
        """Whether `sparring import` made it."""
        return "provenance" in self.summary


_TYPES = TypeAdapter(Manifest)


def content_digest(files: Iterable[File]) -> str:
    """Return the sha256 over (logical name, sha256) of all files."""
    return digest({file.name: file.sha256 for file in files})


class CorruptManifest(DataError):
    """A manifest that is there but is not what was published."""


class Artifact:
    """One artifact's folder in the store."""

    def __init__(self, store: Path, kind: str, fingerprint: str) -> None:
        self.kind = kind
        self.fingerprint = fingerprint
        self.path = store / f"{kind}-{fingerprint[:8]}"
        self.lease = store / LEASES / f"{kind}-{fingerprint[:8]}.json"

    def manifest(self) -> Manifest | None:
        """Return the manifest, None when there is none; CorruptManifest when it is not what was published."""
        path = self.path / MANIFEST
        try:
            raw = self.raw()
        except OSError as error:
            raise CorruptManifest(f"{path}: {error.strerror}; the step will be redone.") from None
        if raw is None:
            return None
        manifest = _parse(path, raw)
        if manifest.fingerprint != self.fingerprint:
            raise CorruptManifest(f"{path}: names another step ({manifest.fingerprint[:16]}); the step will be redone.")
        return manifest

    def raw(self) -> bytes | None:
        """Return the manifest's bytes, None when there is none."""
        try:
            return (self.path / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None

    def missing_file(self, manifest: Manifest) -> str | None:
        """Return what is wrong with the files' presence and sizes (not their bytes), None when nothing is."""
        for file in manifest.files:
            path = self.path / file.path
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != file.bytes:
                return f"{path} has {path.stat().st_size} bytes, recorded {file.bytes}"
        return None

    def damage(self) -> str:
        """Return what the store has lost of a finished artifact, by presence and sizes; '' where nothing is."""
        try:
            manifest = self.manifest()
        except CorruptManifest as error:
            return str(error).removesuffix("; the step will be redone.")
        if manifest is None:
            return f"{self.path} {'has lost its manifest' if self.path.is_dir() else 'is gone'}"
        return self.missing_file(manifest) or ""

    def corrupt_files(self, manifest: Manifest) -> list[str]:
        """Re-hash every file and return the messages of those that differ."""
        bad = []
        for file in manifest.files:
            path = self.path / file.path
            if not path.is_file():
                bad.append(f"{path}: missing")
            elif sha256_file(path) != file.sha256:
                bad.append(f"{path}: sha256 differs from the manifest")
        return bad

    def set_aside(self) -> None:
        """Make the artifact undone: its manifest goes first, then everything else, so that no kill leaves a half."""
        manifest = self.path / MANIFEST
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            manifest.unlink()
            _sync_folder(self.path)
        if self.path.exists():
            shutil.rmtree(self.path)

    def as_input(self, role: str, manifest: Manifest) -> Input:
        """Return the finished artifact as the input `role` of another step."""
        return Input(role=role, root=self.path, digest=manifest.content, files=manifest.files, summary=manifest.summary)


def _parse(path: Path, raw: bytes) -> Manifest:
    try:
        body = json.loads(raw)
        seal = body.pop("seal")
        if seal != digest(body):
            raise ValueError("its seal does not match its text")
        _TYPES.validate_json(json.dumps(body), strict=True)
        if not {"in", "out", "dropped"} <= body["rows"].keys():
            raise ValueError("its rows are not counted")
        if not all({"name", "digest"} <= entry.keys() for entry in body["inputs"].values()):
            raise ValueError("its inputs are not named")
        return Manifest(**{**body, "files": tuple(File(**file) for file in body["files"])})
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SparringError) as error:
        why = str(error)
    raise CorruptManifest(f"{path}: corrupt manifest ({why}); the step will be redone.")


def fingerprint_of(path: Path) -> str:
    """Return the fingerprint that a manifest file claims, zeros when it cannot be read."""
    try:
        return str(json.loads(path.read_bytes())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "0" * 64


def find(store: Path, name: str) -> tuple[Artifact, Manifest]:
    """Return the finished artifact `name` (`sample-1f2e3d4c`); DataError names those of its kind that are there."""
    kind = name.rpartition("-")[0]
    artifact = Artifact(store, kind, fingerprint_of(store / name / MANIFEST))
    manifest = artifact.manifest() if artifact.path.name == name else None
    if manifest is None:
        there = ", ".join(sorted(path.parent.name for path in store.glob(f"{kind}-*/{MANIFEST}")))
        raise DataError(f"there is no finished artifact {name} in {store}; of its kind there are: {there or 'none'}.")
    return artifact, manifest


def write_part(job: Job, shard: Shard, part: Part, seconds: float) -> dict[str, Any]:
    """Write a shard's table under its final name, then its record; return the record."""
    import pyarrow.parquet as pq

    lost = part.rows_in - part.table.num_rows - sum(part.dropped.values())
    if lost:
        raise DataError(f"{job.spec.kind} shard {shard.index}: {lost} rows are neither written nor counted as dropped.")
    stem = f"part-{shard.index:05d}.{job.attempt}"
    path = job.out / f"{stem}.parquet"
    with _disk_errors(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        pq.write_table(part.table, temporary, compression="zstd")
        _sync_file(temporary)
        record = {
            "fingerprint": job.fingerprint,
            "inputs": {role: source.digest for role, source in sorted(job.inputs.items())},
            "file": asdict(
                File(
                    name=f"part-{shard.index:05d}.parquet",
                    path=path.name,
                    sha256=sha256_file(temporary),
                    bytes=temporary.stat().st_size,
                )
            ),
            "attempt": job.attempt,
            "code": job.code,
            "rows_in": part.rows_in,
            "rows_out": part.table.num_rows,
            "dropped": part.dropped,
            "stats": part.stats,
            "seconds": seconds,
        }
        os.replace(temporary, path)
        write_text(job.out / f"{stem}.json", json.dumps(record))
    return record


def finished_parts(job: Job) -> dict[int, dict[str, Any]]:
    """Return index -> record of the shards that are done for exactly this job by this code; others are ignored."""
    done: dict[int, dict[str, Any]] = {}
    inputs = {role: source.digest for role, source in sorted(job.inputs.items())}
    for path in sorted(job.out.glob("part-*.json")):
        match = _PART.search(path.name)
        record = _record(path)
        if not match or record.get("fingerprint") != job.fingerprint or record.get("inputs") != inputs:
            continue
        if record.get("code") != job.code:
            continue
        part = job.out / record["file"]["path"]
        if part.is_file() and sha256_file(part) == record["file"]["sha256"]:
            done.setdefault(int(match[1]), record)
    return done


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(record["file"]["path"], str) and isinstance(record["file"]["sha256"], str)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return dict(record) if whole else {}


def damaged_part(path: Path) -> str | None:
    """Return what is wrong with a finished shard, given its record's path; None where nothing is."""
    record = _record(path)
    if not record:
        return "its record is not what was written"
    part = path.parent / record["file"]["path"]
    right = part.is_file() and sha256_file(part) == record["file"]["sha256"]
    return None if right else f"{part.name} is not what was written"


def publish(artifact: Artifact, manifest: Manifest, replaces: bytes | None = None) -> Manifest:
    """Create the manifest exclusively and return the one that stands: ours, or the one that was first.

    replaces: the bytes of a stale manifest, which gives way only now that its successor is complete: the first writer
    takes the name of its successor, and whoever sees it taken puts that one in place, in one rename.
    """
    body = asdict(manifest)
    body["files"] = [asdict(file) for file in manifest.files]
    text = json.dumps({**body, "seal": digest(body)}, indent=1)
    temporary = artifact.path / f".{MANIFEST}.{manifest.attempts[-1]}"
    with _disk_errors(artifact.path):
        write_text(temporary, text)
        try:
            if (standing_raw := artifact.raw()) is None:
                _link(temporary, artifact.path / MANIFEST)
            elif standing_raw == replaces:
                successor = artifact.path / f".{MANIFEST}.after.{_succession(manifest, replaces)}"
                _link(temporary, successor)
                if artifact.raw() == replaces:
                    with contextlib.suppress(FileNotFoundError):  # another writer has just put it in place
                        os.replace(successor, artifact.path / MANIFEST)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(artifact.path)
    standing = artifact.manifest()
    if standing is None:
        raise DataError(f"{artifact.path}: the manifest vanished while it was published; run again.")
    return standing


def _link(temporary: Path, name: Path) -> None:
    """Give a file its name unless another has it."""
    with contextlib.suppress(FileExistsError):
        os.link(temporary, name)


def _succession(manifest: Manifest, replaces: bytes) -> str:
    """Return a name for what may take a stale manifest's place: made of the same inputs by the same code."""
    made = {"inputs": manifest.inputs, "modules": manifest.made_with.get("modules")}
    return hashlib.sha256(replaces + digest(made).encode()).hexdigest()[:16]


def tidy(artifact: Artifact, manifest: Manifest) -> None:
    """Remove what no manifest names: records, parts of lost attempts, checkpoints."""
    keep = {MANIFEST} | {Path(file.path).parts[0] for file in manifest.files}
    for path in artifact.path.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def files_below(root: Path, names: dict[str, Path]) -> tuple[File, ...]:
    """Return File records of logical name -> absolute path, hashed and synced."""
    for path in names.values():
        _sync_file(path)
    return tuple(
        File(name=name, path=str(path.relative_to(root)), sha256=sha256_file(path), bytes=path.stat().st_size)
        for name, path in sorted(names.items())
    )


class _disk_errors:
    """Turn a full disk into one message."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(full_disk(self.place)) from None


def check_folder(key: str, folder: Path) -> None:
    """ConfigError where nothing can be written into a folder, which need not be there yet; key: what has named it."""
    try:
        place = existing(folder)
        why = _unwritable(place) or _too_long(folder.absolute(), place)
    except OSError as error:
        why = str(error.strerror)
    if why:
        raise ConfigError(f"{key}={folder}: {why}; name a folder that can be written.")


def existing(folder: Path) -> Path:
    """Return a folder, or of those above it the nearest that is there."""
    place = folder.absolute()
    while not place.exists() and not place.is_symlink() and place != place.parent:
        place = place.parent
    return place


def _unwritable(place: Path) -> str:
    """Return why nothing can be written into what is there, '' where something can."""
    if not place.is_dir():
        return f"{place} is {'a link to nothing' if place.is_symlink() and not place.exists() else 'no folder'}"
    if os.access(place, os.W_OK | os.X_OK):
        return ""
    read_only = os.statvfs(place).f_flag & os.ST_RDONLY
    return f"{place} {'is on a read-only file system' if read_only else 'may not be written by this user'}"


def _too_long(folder: Path, place: Path) -> str:
    """Return what is too long of a folder that is to be made below `place`, with room for the names in it."""
    most = os.pathconf(place, "PC_NAME_MAX")
    name = max(folder.parts, key=lambda part: len(os.fsencode(part)))
    if len(os.fsencode(name)) > most:
        return f"a name of {len(os.fsencode(name))} bytes is too long, {most} are the most"
    if len(os.fsencode(folder)) + LONGEST_BELOW > os.pathconf(place, "PC_PATH_MAX"):
        return f"a path of {len(os.fsencode(folder))} bytes is too long"
    return ""


def make_folder(key: str, folder: Path) -> None:
    """Make a folder; ConfigError names the key where it cannot be made."""
    check_folder(key, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}={folder}: {error.strerror}; name a folder that can be written.") from None


def check_target(path: Path, option: str) -> None:
    """ConfigError where no file can be written at `path`, before hours are spent; option: what has named it."""
    try:
        if _is_special(path):
            return
        target = path.resolve()
        if target.is_dir() or not target.parent.is_dir():
            raise ConfigError(f"{option} {path}: name a file in a folder that is there.")
        if kept := _kept(target):
            raise ConfigError(f"{option} {path}: {kept}; name another file.")
        why = _unwritable(target.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        why = str(getattr(error, "strerror", None) or error)
    if why:
        raise ConfigError(f"{option} {path}: {why}; name a file in a folder that can be written.")


def check_export(folder: Path, option: str) -> None:
    """ConfigError where a folder of the user's would lie in the store or in a run; option: what has named it."""
    check_folder(option, folder)
    place = folder.resolve()
    run = next((above for above in place.parents if (above / RECORDS[0]).is_file()), None)
    if why := f"{run} is the folder of a run" if run else _kept(place):
        raise ConfigError(f"{option} {folder}: {why}; name a folder elsewhere.")


def _kept(place: Path) -> str:
    """Return what keeps its own files at a place, '' where the user may write."""
    store = next((above for above in place.parents if (above / LEASES).is_dir()), None)
    if store:
        return f"{store} is a store"
    of_run = place.name in RECORDS and (place.parent / RECORDS[0]).is_file()
    return f"{place.name} is a record of the run" if of_run else ""


def write_target(path: Path, text: str) -> None:
    """Replace a file that the user has named, whole or not at all; a pipe or a device is written to, never replaced."""
    if not _is_special(path):
        write_text(path.resolve(), text)
        return
    handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # a pipe that nobody reads fails, where it would be waited for
    os.set_blocking(handle, True)
    with naming(path), os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)


def _is_special(path: Path) -> bool:
    """Return whether what is there is a pipe, a socket or a device."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text(path: Path, text: str) -> None:
    """Replace a small file: after a kill it is the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path):
            temporary.write_text(text, encoding="utf-8")
            _sync_file(temporary)
            os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def external(role: str, path: Path, hashes: Callable[[Path], str] = sha256_file) -> Input:
    """Return a file, or all files of a folder, that the user brings, as an input with its content digest.

    DataError when it is not there. Hidden files and folders are left out. `hashes` may be a cached hash.
    """
    if not path.exists():
        raise DataError(f"{role}: {path} does not exist; check the path.")
    root, found = (path, sorted(p for p in path.rglob("*") if p.is_file())) if path.is_dir() else (path.parent, [path])
    shown = [p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    files = tuple(
        File(
            name=str(p.relative_to(root)),
            path=str(p.relative_to(root)),
            sha256=hashes(p),
            bytes=p.stat().st_size,
        )
        for p in shown
    )
    named = (
        tuple(File(name=role, path=f.path, sha256=f.sha256, bytes=f.bytes) for f in files) if path.is_file() else files
    )
    return Input(role=role, root=root.absolute(), digest=content_digest(named), files=named)
