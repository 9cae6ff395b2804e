"""The driver of a run, found by its lease and asked to stop, from whatever machine sees the run's folder.

On the driver's machine it gets SIGTERM. From another one a file in the run's folder names the lease whose holder is to
stop, and the driver, which looks every POLL_S, sends itself SIGTERM: a file that is left over stops no later driver.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sparring.pipeline.runs.progress import LEASE
from sparring.pipeline.store.files import write_text
from sparring.pipeline.store.lease import Holder, holder_of, started
from sparring.stages.patience import Patience

STOP = ".stop"
"""File in the folder of a run or an arm: the token of a lease."""
POLL_S = 2.0
LOOK_S = 0.2
"""Seconds between two looks whether a driver has ended."""
LONGEST_S = 960.0
"""Seconds that a driver has to end: a training may take 900 of them to save its state."""


@contextlib.contextmanager
def stoppable(tokens: Mapping[Path, str]) -> Iterator[None]:
    """Inside the block, send this process SIGTERM once when a run that it drives is to stop; tokens: of its leases."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(POLL_S):
            for folder, token in tokens.items():
                with contextlib.suppress(OSError, ValueError):
                    if (folder / STOP).read_text(encoding="utf-8") == token:
                        os.kill(os.getpid(), signal.SIGTERM)
                        return

    thread = threading.Thread(target=look, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for folder in tokens:
            (folder / STOP).unlink(missing_ok=True)


def ask(folder: Path, holder: Holder) -> None:
    """Ask the driver that holds the lease of a folder to stop."""
    if holder.here:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # of another user: by the file
            process = os.pidfd_open(holder.pid)
            try:
                if started(holder.pid) == holder.started:  # from now on the descriptor means no other process
                    signal.pidfd_send_signal(process, signal.SIGTERM)
                return
            finally:
                os.close(process)
    write_text(folder / STOP, holder.token)


def wait_for_end(folder: Path, holder: Holder, waiting: Callable[[float], None]) -> bool:
    """Return whether the driver has ended, at the latest after LONGEST_S; waiting: gets the seconds so far."""
    patience = Patience()
    while patience.waited_s < LONGEST_S:
        now = holder_of(folder / LEASE)
        if now is None or now.token != holder.token or not now.is_alive:
            return True
        if patience.is_due():
            waiting(patience.waited_s)
        time.sleep(LOOK_S)
    return False
