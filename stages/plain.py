"""Text of models and of files, made safe for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need."""


def printable(text: str) -> str:
    r"""Return text in which every control character but line feed and tab is spelled out: ESC becomes \x1b.

    So are characters that reorder or hide what stands beside them, and lone surrogates, which no terminal can show.
    """
    return "".join(char if _shown(char) else _spelled(char) for char in text)


def listed(names: Iterable[str]) -> str:
    """Name a few, and say how many more there are."""
    every = sorted(names)
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")


def _shown(char: str) -> bool:
    return char in "\n\t" or char in JOINERS or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _spelled(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
