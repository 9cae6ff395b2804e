"""Values as they are shown or written: text that cannot steer a terminal, names, counts, intervals, JSON's numbers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping

JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need."""


def printable(text: str) -> str:
    r"""Return text in which every control character but line feed and tab is spelled out: ESC becomes \x1b.

    So are characters that reorder or hide what stands beside them, and lone surrogates, which no terminal can show.
    """
    spelled = []
    for char in text:
        code = ord(char)
        if char in "\n\t" or char in JOINERS or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            spelled.append(char)
        else:
            form = "\\x{:02x}" if code < 0x100 else "\\u{:04x}" if code < 0x10000 else "\\U{:08x}"
            spelled.append(form.format(code))
    return "".join(spelled)


def listed(names: Iterable[str]) -> str:
    """Return the first three names in order, and how many more there are."""
    every = sorted(names)
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")


def null_if_nan(value: float) -> float | None:
    """Return the value; None, JSON's null, where it is NaN."""
    return None if math.isnan(value) else float(value)


def size_text(size: float) -> str:
    """Return bytes as `140.0 GiB`, `3.2 MiB` or `17 bytes`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size:,.0f} bytes"


def counts_text(counts: Mapping[str, int]) -> str:
    """Return `capped 2, tie 1,003`, in the order of the names; '' without any."""
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def interval_text(value: float, low: float, high: float, form: str = ".3f") -> str:
    """Return `0.605 [0.553, 0.649]`; form: how each number is written, `+.3f` for a difference."""
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
