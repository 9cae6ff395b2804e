"""Artifacts of the store: files, and a manifest that is created last, exclusively.

    store/pairs-3f9c2a1b/manifest.json             with a valid one the artifact is done; nothing else is state
    store/pairs-3f9c2a1b/part-00007.<attempt>.parquet

Every attempt writes files of its own name. The first manifest wins (link() fails when the name exists) and later
writers adopt it: two writers of one artifact, a mistake, waste work and corrupt nothing. In a bucket a conditional put
does what link() does (remote.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sparring.pipeline.store import remote
from sparring.pipeline.store.files import LEASES, MANIFEST, content_digest, disk_errors, sync, write_text
from sparring.stages import fields
from sparring.stages.errors import DataError, SparringError
from sparring.stages.fingerprint import artifact_name, digest
from sparring.stages.step import File, Input, sha256_file

DROPPED = "dropped.json"
"""Which files of a finished artifact were removed to free disk, and why; beside its manifest, which stays."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact is, what it was made of, by what, and its files."""

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
    def name(self) -> str:
        """`sample-1f2e3d4c`, its folder in the store."""
        return artifact_name(self.step, self.fingerprint)

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


class CorruptManifest(DataError):
    """A manifest that is there but is not what was published."""


class Artifact:
    """One artifact's folder in the store."""

    def __init__(self, store: Path, kind: str, fingerprint: str) -> None:
        self.kind = kind
        self.fingerprint = fingerprint
        self.path = store / artifact_name(kind, fingerprint)
        self.lease = store / LEASES / f"{self.path.name}.json"
        self.remote = remote.of(store)
        """The bucket that the artifact is in; `path` is then this node's copy, whole or not. None: `path` is all."""

    def manifest(self) -> Manifest | None:
        """Return the manifest, None when there is none; CorruptManifest when it is not what was published."""
        path = self.path / MANIFEST
        try:
            raw = self.raw()
            if raw is None:
                return None
            body = json.loads(raw)
            seal = body.pop("seal")
            if seal != digest(body):
                raise ValueError("its seal does not match its text")
            _TYPES.validate_json(json.dumps(body), strict=True)
            if not {"in", "out", "dropped"} <= body["rows"].keys():
                raise ValueError("its rows are not counted")
            if not all({"name", "digest"} <= entry.keys() for entry in body["inputs"].values()):
                raise ValueError("its inputs are not named")
            manifest = Manifest(**{**body, "files": tuple(File(**file) for file in body["files"])})
        except OSError as error:
            raise CorruptManifest(f"{path}: {error.strerror}; the step will be redone.") from None
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise CorruptManifest(f"{path}: corrupt manifest ({why}); the step will be redone.") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SparringError) as error:
            raise CorruptManifest(f"{path}: corrupt manifest ({error}); the step will be redone.") from None
        if manifest.fingerprint != self.fingerprint:
            raise CorruptManifest(f"{path}: names another step ({manifest.fingerprint[:16]}); the step will be redone.")
        return manifest

    def raw(self) -> bytes | None:
        """Return the manifest's bytes, None when there is none."""
        try:
            return (self.path / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None

    def damaged_files(self, manifest: Manifest, *, rehash: bool = False) -> Iterator[str]:
        """Yield a line for each file that is missing, has another size or, with `rehash`, has other bytes.

        Files that were dropped are no damage.
        """
        dropped = self._marker(manifest).get("files", ())
        for file in manifest.files:
            path = self.path / file.path
            if self.remote:
                if why := self.remote.fault(self.path.name, file, rehash=rehash):
                    yield why
            elif not path.is_file():
                if file.name not in dropped:
                    yield f"{path} is missing"
            elif path.stat().st_size != file.bytes:
                yield f"{path} has {path.stat().st_size} bytes, recorded {file.bytes}"
            elif rehash and sha256_file(path) != file.sha256:
                yield f"{path}: sha256 differs from the manifest"

    def damage(self) -> str:
        """Return what the store has lost of a finished artifact, by presence and sizes; '' where nothing is."""
        try:
            manifest = self.manifest()
        except CorruptManifest as error:
            return str(error).removesuffix("; the step will be redone.")
        if manifest is None:
            return f"{self.path} {'has lost its manifest' if self.path.is_dir() else 'is gone'}"
        return next(self.damaged_files(manifest), "")

    def drop(self, manifest: Manifest, names: Collection[str], why: str) -> int:
        """Remove files of a finished artifact and say so beside its manifest, which stays; return the bytes freed.

        names: their logical names. After a kill none counts as dropped, or all do; another call removes the rest.
        """
        files = [file for file in manifest.files if file.name in names]
        there = [file for file in files if (self.path / file.path).is_file()]
        marker = {"content": manifest.content, "files": sorted(names), "why": why}
        write_text(self.path / DROPPED, json.dumps(marker))
        for file in there:
            (self.path / file.path).unlink(missing_ok=True)
        for folder in {(self.path / file.path).parent for file in files} - {self.path}:
            with contextlib.suppress(OSError):
                folder.rmdir()
        return sum(file.bytes for file in there)

    def dropped(self, manifest: Manifest) -> str:
        """Return why files of a finished artifact were dropped; '' where all of them are there."""
        marker = self._marker(manifest)
        lost = (
            any(file.name in marker["files"] and not (self.path / file.path).is_file() for file in manifest.files)
            if marker
            else False
        )
        return str(marker["why"]) if lost else ""

    def _marker(self, manifest: Manifest) -> dict[str, Any]:
        """Return what is dropped of the files that a manifest names, {} where nothing is."""
        try:
            marker = json.loads((self.path / DROPPED).read_bytes())
            return marker if marker["content"] == manifest.content and {*marker["files"]} and marker["why"] else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    def set_aside(self) -> None:
        """Make the artifact undone: the manifest is removed first, then the rest, so that a kill leaves no half."""
        manifest = self.path / MANIFEST
        if self.remote:
            self.remote.set_aside(self.path.name)
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            manifest.unlink()
            sync(self.path)
        if self.path.exists():
            shutil.rmtree(self.path)

    def as_input(self, role: str, manifest: Manifest) -> Input:
        """Return the finished artifact as the input `role` of another step."""
        return Input(
            role=role,
            root=self.path,
            digest=manifest.content,
            files=manifest.files,
            summary=manifest.summary,
            pull=remote.Pull(url=self.remote.url, name=self.path.name) if self.remote else None,
        )

    def refresh(self) -> None:
        """Look again at what the bucket has; a file system is looked at each time."""
        if self.remote:
            self.remote.refresh(self.path.name)

    def begun(self) -> bool:
        """Return whether a step without a manifest has made something from which it goes on."""
        names = self.remote.objects.get(self.path.name, ()) if self.remote else ()
        here = (*self.path.glob("part-*.json"), *self.path.glob("checkpoints*/*"))
        return bool(here) or any(fnmatch(name, "part-*.json") for name in names)


def fingerprint_of(path: Path) -> str:
    """Return the fingerprint that a manifest file claims, zeros when it cannot be read."""
    try:
        return str(json.loads(path.read_bytes())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "0" * 64


def find(store: Path, name: str) -> tuple[Artifact, Manifest]:
    """Return the finished artifact `name` (`sample-1f2e3d4c`); DataError lists the finished ones of its kind."""
    kind = name.rpartition("-")[0]
    artifact = Artifact(store, kind, fingerprint_of(store / name / MANIFEST))
    manifest = artifact.manifest() if artifact.path.name == name else None
    if manifest is None:
        finished = ", ".join(sorted(path.parent.name for path in store.glob(f"{kind}-*/{MANIFEST}")))
        raise DataError(f"{store} has no finished artifact {name}; finished ones of its kind: {finished or 'none'}.")
    return artifact, manifest


def publish(artifact: Artifact, manifest: Manifest, replaces: bytes | None = None) -> Manifest:
    """Create the manifest exclusively and return the one that is in place: ours, or the one that was first.

    replaces: the bytes of a stale manifest, which is replaced only now that its successor is complete. Writers with the
    same inputs and the same code agree on the successor's temporary name: the first one takes it, and every writer that
    finds it moves it into place, in one rename.
    """
    body = asdict(manifest)
    body["files"] = [asdict(file) for file in manifest.files]
    text = json.dumps({**body, "seal": digest(body)}, indent=1)
    if artifact.remote:
        _publish_remotely(artifact, artifact.remote, manifest, text, replaces)
    else:
        _publish_here(artifact, manifest, text, replaces)
    published = artifact.manifest()
    if published is None:
        raise DataError(f"{artifact.path}: the manifest vanished while it was published; run again.")
    return published


def _publish_remotely(
    artifact: Artifact, bucket: remote.Remote, manifest: Manifest, text: str, replaces: bytes | None
) -> None:
    """Upload what the bucket lacks, then create the manifest, or replace the stale one if it is still there."""
    name, current = artifact.path.name, artifact.raw()
    stale = bucket.listed(name, MANIFEST) if current else None
    bucket.refresh(name)
    bucket.upload(name, artifact.path, manifest.files)
    if current is None or current == replaces:
        bucket.create(f"{name}/{MANIFEST}", text.encode(), stale.etag if stale else "")
    bucket.refresh(name)


def _publish_here(artifact: Artifact, manifest: Manifest, text: str, replaces: bytes | None) -> None:
    temporary = artifact.path / f".{MANIFEST}.{manifest.attempts[-1]}"
    with disk_errors(artifact.path):
        write_text(temporary, text)
        try:
            if (current := artifact.raw()) is None:
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, artifact.path / MANIFEST)
            elif current == replaces:
                made = {"inputs": manifest.inputs, "modules": manifest.made_with.get("modules")}
                succession = hashlib.sha256(replaces + digest(made).encode()).hexdigest()[:16]
                successor = artifact.path / f".{MANIFEST}.after.{succession}"
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, successor)
                if artifact.raw() == replaces:
                    with contextlib.suppress(FileNotFoundError):  # another writer has just moved it into place
                        os.replace(successor, artifact.path / MANIFEST)
        finally:
            temporary.unlink(missing_ok=True)
        sync(artifact.path)


def tidy(artifact: Artifact, manifest: Manifest) -> None:
    """Remove what no manifest names: records, parts of lost attempts, checkpoints."""
    keep = {MANIFEST} | {Path(file.path).parts[0] for file in manifest.files}
    keep |= {DROPPED} if artifact.dropped(manifest) else set()
    for path in artifact.path.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if artifact.remote:
        artifact.remote.tidy(artifact.path.name, {file.path for file in manifest.files})
