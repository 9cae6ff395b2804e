"""`sparring gc`: remove what no run refers to."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Runs
from sparring.pipeline.runs import references
from sparring.pipeline.store.files import LEASES
from sparring.pipeline.store.manifest import MANIFEST
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.plain import printable, size_text


def gc(
    delete: Annotated[bool, options.flag("--delete", "remove it; without this it is only listed")] = False,
    store: Annotated[Path, options.path("FOLDER", "the store (paths.store)", "--store")] = Path("store"),
    runs: Runs = RUNS,
) -> None:
    """List what no run refers to; remove it with --delete.

    The store knows the folders of the runs that use it; --runs names one more, whose runs an older version began. What
    was imported, what answers were made of, and what was changed in the last five minutes stays.

    Example: sparring gc --store /data/store
    """
    if str(store).startswith("s3:"):
        raise ConfigError(f"--store {store}: gc removes from folders alone; remove from a bucket with its own tools.")
    if not (store / LEASES).is_dir():
        raise DataError(f"--store {store}: holds no artifacts; name the store (paths.store).")
    with references.removal(store) if delete else nullcontext():
        found = references.unused(store, runs)
        for path, size in [*found.artifacts, *found.left]:
            unfinished = path.parent == store and not (path / MANIFEST).exists()
            print(printable(f"{size_text(size):>12}  {path}{' (not finished)' if unfinished else ''}"))
        for line in references.remove(found, store) if delete else ():
            print(printable(line))
    total = size_text(sum(size for _, size in [*found.artifacts, *found.left]))
    young = f", {found.young} of no run but changed in the last {references.YOUNG_S:.0f} s" if found.young else ""
    print(
        printable(
            f"{store}: {len(found.artifacts)} artifacts and {len(found.left)} other folders are of no run, {total}; "
            f"{len(found.leases)} leases of processes that have ended. Kept: {found.kept} of {found.runs} runs in "
            f"{', '.join(map(str, found.folders))}{young}."
        )
    )
    if not delete and (found.artifacts or found.left or found.leases):
        print("nothing was removed; --delete removes it")
