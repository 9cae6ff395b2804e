"""SIGTERM to a worker: it is noted, so that all workers save a checkpoint after the optimizer step they are in.

Ray Train runs the training in a thread, while Python handles signals in the main thread alone: the handler is set by
a call that Ray runs there, and runs when Ray next asks for the worker's health, within half a second.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

_received: list[int] = []


def listen() -> None:
    """Note the first SIGTERM; a second does what it did before."""
    before: Any = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        if _received:
            before(number, frame)
        _received.append(number)

    _received.clear()
    signal.signal(signal.SIGTERM, note)


def received() -> bool:
    """Return whether this process got a SIGTERM."""
    return bool(_received)
