"""SIGTERM and SIGINT beside a step that can save its state: the first waits until it is saved, a second ends at once.

Slurm sends SIGTERM before it takes a machine away, a person presses Ctrl-C: both keep what a training has done so far.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from sparring.stages.errors import RUN_AGAIN, Stopped

_received: list[int] = []


def handle_signals() -> None:
    """From now on, raise an exception at SIGTERM or SIGINT; forget the signals before."""
    _received.clear()
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored it stays ignored
        signal.signal(signal.SIGINT, stop)


def last_signal() -> int | None:
    """Return the last signal that ended the process's work, whatever exception Ray or an import made of it."""
    return _received[-1] if _received else None


def stop(number: int, _frame: FrameType | None) -> None:
    """Handle SIGTERM and SIGINT."""
    _received.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(f"stopped; {RUN_AGAIN}", number)


@contextlib.contextmanager
def held() -> Iterator[Callable[[], int]]:
    """Hold back the first signal, inside the block; yields a function that returns its number, 0 before.

    It is delivered when the block has ended well. A signal that is ignored, as Ctrl-C in the background, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    pending: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def hold(number: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        if pending and callable(handler):
            handler(number, frame)
        pending.append(number)

    for number in before:
        signal.signal(number, hold)
    try:
        yield lambda: pending[0] if pending else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if pending:
        signal.raise_signal(pending[0])
