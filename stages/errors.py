"""Errors a user can act on. Each carries one message: what is wrong, where (file, row, key), and what to do."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

RUN_AGAIN = "run the same command again to resume."
LITTLE_BYTES = 64 * 2**20
"""With less than this free, what could not be written failed because the disk is full."""


class SparringError(Exception):
    """Base of all expected errors; the command line prints its message alone and exits with 2."""


class ConfigError(SparringError):
    """A configuration key or value is wrong."""


class DataError(SparringError):
    """An input file, a model folder or a stored artifact is wrong."""


class HubSilent(DataError):
    """The hub does not answer, or may not be used."""


class RuleFired(SparringError):
    """A rule of diagnostics.stop_on stopped an arm; what was made is as good as ever."""


class EngineFault(SparringError):
    """An engine failed on a shard; it is ended, and the shard is done again by a new one."""


class TrainingFault(SparringError):
    """Training cannot go on: a loss or a gradient is not finite, or too few optimizer steps are left."""


class Stopped(KeyboardInterrupt):
    """A signal ended the run, which can be resumed."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, its class where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def disk_is_full(error: BaseException, place: Path) -> bool:
    """Return whether an error means a full disk, by its number or by the message of what writes model files."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return True
    # torch's writer of zip files reports only that less was written than it gave
    short = any(words in text for words in ("write failed", "unexpected pos ", "PytorchStreamWriter failed writing"))
    return short and shutil.disk_usage(place).free < LITTLE_BYTES


def full_disk(place: Path) -> str:
    """Return the message for a full disk at `place`."""
    return f"{place}: the disk is full. Free space, or set paths.store to another disk, then run again: it resumes."
