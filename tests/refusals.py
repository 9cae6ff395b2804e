"""What a test may say of an error: its class, and what it names. The words around may get better at any time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sparring.stages.errors import SparringError

Names = str | tuple[str, ...]


def named(message: str, *names: Names) -> None:
    """The message, or what a command prints, holds all of `names`."""
    for name in names:
        for one in (name,) if isinstance(name, str) else name:
            assert one in message, f"{one!r} is not in: {message}"


@contextmanager
def refused(
    kind: type[BaseException] | tuple[type[BaseException], ...], *names: Names
) -> Iterator[pytest.ExceptionInfo[Any]]:
    """The block raises `kind`, and its message names all of `names`: keys, options, files, rows, values; no phrases.

    The messages of our own errors are one line that ends as a sentence does.
    """
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    named(message, *names)
    if isinstance(caught.value, SparringError):
        assert "\n" not in message.strip(), message
