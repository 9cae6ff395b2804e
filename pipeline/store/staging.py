"""A folder that is filled under a hidden name beside its target, then renamed: it appears complete or not at all.

    .my-policy.sparring-staged/        being filled, or left by a killed process
    .my-policy.sparring-staged.json    the lease of the process that fills it

Before a folder is filled, those that killed processes left in the same parent are removed, never one in use.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparring.pipeline.store.lease import Lease, LeaseHeld
from sparring.stages.plain import printable

STAGED = ".sparring-staged"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield an empty folder for the caller to fill and rename to `target`; unless renamed, it is removed at the end.

    LeaseHeld where a live process fills one for the same target.
    """
    folder = target.with_name(f".{target.name}{STAGED}")
    try:
        lease = _acquire(folder)
    except LeaseHeld as error:
        raise LeaseHeld(f"{target} is being written by {error}. Wait for its end, or choose another place.") from None
    with lease:
        for other in target.parent.glob(f".*{STAGED}.json"):
            with suppress(LeaseHeld), _acquire(other.with_suffix("")):
                shutil.rmtree(other.with_suffix(""), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _acquire(folder: Path) -> Lease:
    """Return the acquired lease of a folder; LeaseHeld while its holder lives."""

    def waiting(holder: str) -> None:
        print(printable(f"{folder} is held by {holder}"), file=sys.stderr)

    return Lease(folder.with_name(f"{folder.name}.json"), "sparring").acquire(wait=False, waiting=waiting)
