"""A folder that is filled under a hidden name beside its place, then renamed: it appears whole or not at all.

    .my-policy.sparring-staged/        being filled, or what a killed process left
    .my-policy.sparring-staged.json    the lease of who fills it

What killed processes left in the same parent is removed before a folder is filled, never what a live one is filling.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparring.pipeline.lease import Lease, LeaseHeld

STAGED = ".sparring-staged"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give an empty folder for the caller to fill and rename to `target`; what is not renamed is removed at the end.

    LeaseHeld where a live process does so for the same target.
    """
    folder = target.with_name(f".{target.name}{STAGED}")
    try:
        lease = _alone(folder)
    except LeaseHeld as error:
        raise LeaseHeld(f"{target} is being written by {error}. Wait for its end, or choose another place.") from None
    with lease:
        for other in target.parent.glob(f".*{STAGED}.json"):
            with suppress(LeaseHeld), _alone(other.with_suffix("")):
                shutil.rmtree(other.with_suffix(""), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _alone(folder: Path) -> Lease:
    """Hold the lease of a folder; LeaseHeld while its holder lives."""
    lease = Lease(folder.with_name(f"{folder.name}.json"), "sparring")
    return lease.acquire(wait=False, waiting=lambda holder: print(f"{folder} is held by {holder}", file=sys.stderr))
