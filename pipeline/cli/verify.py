"""`sparring verify`: every file of the store against its digest."""

from __future__ import annotations

import fnmatch
from functools import partial
from pathlib import Path
from typing import Annotated

from sparring.pipeline.cli import options
from sparring.pipeline.cli.prepare import print_held
from sparring.pipeline.store.files import LEASES
from sparring.pipeline.store.lease import Lease
from sparring.pipeline.store.manifest import MANIFEST, Artifact, fingerprint_of
from sparring.pipeline.store.parts import damaged_part
from sparring.pipeline.store.remote import check_address, of, opened
from sparring.stages.errors import DataError
from sparring.stages.plain import printable
from sparring.stages.train.files import checkpoint

NAME = "*-????????"
"""Of an artifact's folder."""


def verify(store: Annotated[str, options.value("PLACE", "the store (paths.store)", "--store")] = "store") -> int:
    """Re-hash every file of the store; undo what is corrupt.

    The next run makes again what is undone.

    Example: sparring verify --store /data/store
    """
    folder = opened(check_address(store)) if "://" in store else options.place(store)
    bucket = of(folder)
    if not bucket and not folder.is_dir():
        raise DataError(f"--store {store}: there is no such folder; name the store (paths.store).")
    bad = 0
    remotely = fnmatch.filter(bucket.objects, NAME) if bucket else []
    names = sorted({*remotely, *(path.name for path in folder.glob(NAME) if path.is_dir())})
    if not names and not (folder / LEASES).is_dir():
        raise DataError(f"--store {store}: holds no artifacts; name the store (paths.store).")
    for path in (folder / name for name in names):
        kind, _, _ = path.name.rpartition("-")
        bad += _verify_one(folder, kind, path) if (path / MANIFEST).exists() else _verify_unfinished(path)
    print(f"{store}: {len(names)} artifacts, {bad} corrupt")
    return 2 if bad else 0


def _verify_unfinished(path: Path) -> bool:
    """Say what of an unfinished step is there; the next run leaves out what is damaged by itself."""
    if bucket := of(path.parent):
        bucket.copy_records(path.name, "part-*.json")
    checkpoints, parts = sorted(path.glob("checkpoints.*/step-*")), sorted(path.glob("part-*.json"))
    damaged = {item.name: checkpoint.damage(item) for item in checkpoints}
    damaged |= {item.name: damaged_part(item) for item in parts}
    bad = {name: what for name, what in damaged.items() if what}
    print(f"{path.name}: not finished; {len(parts)} shards and {len(checkpoints)} checkpoints, {len(bad)} corrupt")
    for name, what in bad.items():
        print(printable(f"{path.name}/{name}: {what}; the next run does not go on from it"))
    return bool(bad)


def _verify_one(store: Path, kind: str, path: Path) -> bool:
    artifact = Artifact(store, kind, fingerprint_of(path / MANIFEST))
    artifact.path, artifact.lease = path, store / LEASES / f"{path.name}.json"
    if not _problems(artifact):
        manifest = artifact.manifest()
        if manifest and (why := artifact.dropped(manifest)):
            print(printable(f"{path.name}: files were dropped ({why}); what is left of it is whole"))
        return False
    with Lease(artifact.lease, "verify").acquire(wait=True, waiting=partial(print_held, path)):
        problems = _problems(artifact)  # again: whoever held the lease may have made it anew
        for problem in problems:
            print(printable(f"{path.name}: {problem}; undone, the next run (or import) makes it again"))
        if problems:
            artifact.set_aside()
    return bool(problems)


def _problems(artifact: Artifact) -> list[str]:
    try:
        manifest = artifact.manifest()
    except DataError as error:
        return [str(error)]
    return list(artifact.damaged_files(manifest, rehash=True)) if manifest else []
