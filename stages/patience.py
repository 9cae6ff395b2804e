"""How long a driver waits for workers, and when it reports the wait."""

from __future__ import annotations

import time

SILENCE_S = 30.0
"""Seconds that a driver waits before it reports for what."""
PLACEMENT_S = 1800.0
"""Seconds that a step waits for workers which have no process: others hold what they need, or a node is gone."""
LOST_S = 100.0
"""Seconds that a step waits for a node to join when none is left that could hold one of its workers."""


class Patience:
    """A wait that is reported after SILENCE_S, and again each time it has doubled."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin to wait anew."""
        self.begun, self.next_s = time.monotonic(), SILENCE_S

    @property
    def waited_s(self) -> float:
        """Seconds since the wait began."""
        return time.monotonic() - self.begun

    def is_due(self) -> bool:
        """Return whether the wait is to be reported now."""
        due = self.waited_s > self.next_s
        if due:
            self.next_s = 2 * self.waited_s
        return due
