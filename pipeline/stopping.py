"""SIGTERM and SIGINT beside a step that can save its state: the first waits until it has, a second ends all at once.

Slurm sends SIGTERM before it takes a machine away, a person presses Ctrl-C: both get what a training has done so far.
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
    """End the process's work at SIGTERM or SIGINT by an exception, from now on; signals before are forgotten."""
    _received.clear()
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored it stays ignored
        signal.signal(signal.SIGINT, interrupt)


def was_told() -> bool:
    """Return whether a signal has told the process to end, whatever was made of its exception."""
    return bool(_received)


def received() -> int:
    """Return the signal that ended the run, where Ray's calls made a plain KeyboardInterrupt of it; else SIGINT."""
    return _received[-1] if _received else signal.SIGINT


def terminate(number: int, _frame: FrameType | None) -> None:
    """Handle SIGTERM."""
    _received.append(number)
    raise Stopped(f"stopped; {RUN_AGAIN}", number)


def interrupt(number: int, _frame: FrameType | None) -> None:
    """Handle SIGINT."""
    _received.append(number)
    raise KeyboardInterrupt


@contextlib.contextmanager
def held() -> Iterator[Callable[[], int]]:
    """Keep the first signal back, inside the block; yields what returns its number, 0 when none came.

    One that came is delivered when the block has ended well. What is ignored, as Ctrl-C is in the background, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def note(number: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        if came and callable(handler):
            handler(number, frame)
        came.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
