"""When a shard counts as hung, and which of its prompts are at fault. Plain logic, no Ray."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence

TRIES_BEFORE_BISECTION = 2
"""A worker killed from outside is no fault of the prompts; one that fails twice on a shard may be."""
MOST_POISON = 4
"""More prompts of one shard than this are not dropped: then something else is wrong."""
HANGS_AFTER, FLOOR_S = 10.0, 600.0


def alike(one: str, other: str) -> bool:
    """Return whether two messages of an engine say the same, but for addresses and counts in them."""
    plain = [re.sub(r"0x[0-9a-fA-F]+|\d+", "#", text) for text in (one, other)]
    return plain[0] == plain[1]


class Watch:
    """How long a shard may take: `limit_s`, or 10 times the slowest shard so far and FLOOR_S where that is less.

    FLOOR_S is what an engine may need to load again, which no shard of a step has shown where it was loaded before.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s, self.slowest_s = limit_s, 0.0

    def took(self, seconds: float) -> None:
        """Note a shard that was done."""
        self.slowest_s = max(self.slowest_s, seconds)

    def most_s(self) -> float:
        """Return the seconds that a shard may take."""
        usual = HANGS_AFTER * self.slowest_s + FLOOR_S if self.slowest_s else math.inf
        return min(self.limit_s, usual)

    def late(self, begun: float) -> bool:
        """Return whether a shard begun at `begun` (time.monotonic) hangs."""
        return time.monotonic() - begun > self.most_s()


def bisect(rows: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> list[int]:
    """Return the rows that fail alone, twice, of rows that fail together; [] when none does.

    Halves of what fails are tried until single rows are left: about 2 log2(n) tries for one such row. It stops looking
    when it has found more than MOST_POISON.
    """
    if len(rows) == 1:
        return list(rows) if fails(rows) else []
    found: list[int] = []
    for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        if len(found) <= MOST_POISON and fails(half):
            found += bisect(half, fails)
    return found
