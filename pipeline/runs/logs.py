"""The logs of a run: what its driver reported, and what workers, training ranks and Ray printed, one file each.

    logs/sample-1f2e3d4c-0-4711.log      a worker: of which step, its number, its pid
    logs/sample-1f2e3d4c-errors.log      stack traces of errors in workers
    logs/train.<attempt>/rank-0.log      a rank of a training
    logs/ray.log                         what Ray itself printed

A log may have gigabytes: it is read once, in pieces, and no line is taken further than LONGEST bytes.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sparring.pipeline.runs.progress import events_file
from sparring.stages.plain import printable

FOLDER = "logs"
LONGEST = 4096
"""Bytes of a line that are shown."""
PIECE = 1 << 20
"""Bytes that are searched at a time."""
EXCERPT = 12
"""Lines of an error that are shown, from the first on."""
TRACE = 200
"""Lines of a stack trace that are read for its last line, which names the error."""
ERROR = re.compile(
    rb"Traceback \(most recent call last\)"
    rb"|^(?:\x1b\[[\d;]*m|\([\w= ]{1,60}\) |\[rank\d+\]: ?)*[-\d:,.T \[\]]{0,40}"
    rb"(?:(?:ERROR|CRITICAL|FATAL)\b|E \d+ \d+\])"
    rb"|^[\w.]*(?:Error|Exception)(?::|$)"
    rb"|CUDA (?:error|out of memory)|Segmentation fault|Fatal Python error",
    re.M,
)
"""How an error begins in the output of Python, vLLM, DeepSpeed, NCCL and Ray."""
WORDS = (
    b"Traceback",
    b"ERROR",
    b"CRITICAL",
    b"FATAL",
    b"Error",
    b"Exception",
    b" E ",
    b"CUDA ",
    b"Segmentation",
    b"Fatal",
)
"""One of them is in every error: a piece without any is not searched further, which is ten times as fast."""
WHOSE = re.compile(r"^(?:\[rank\d+\]: ?|\([\w= ]+\) )")
"""What torchrun and vLLM put before each line of a process."""
COLOUR = re.compile(r"\x1b\[[\d;]*m")


class Numbered(NamedTuple):
    """A line of a file, numbered from 1 on."""

    number: int
    text: str


@dataclass(frozen=True, kw_only=True)
class FirstError:
    """The first error of a log."""

    path: Path
    lines: list[Numbered]
    """From where it begins."""
    last: Numbered | None = None
    """The line that names the error, below a stack trace that is longer than what is shown."""


def log_files(folder: Path, step: str | None = None) -> list[Path]:
    """Return the logs in the folder of a run, the oldest first; step: those of a kind, a label or a name alone."""
    paths = [path for path in sorted((folder / FOLDER).rglob("*.log")) if path.is_file()]
    if step is not None:
        names = _names(folder, step)
        paths = [path for path in paths if any(part.startswith(names) for part in path.relative_to(folder).parts[1:])]
    return sorted(paths, key=lambda path: path.stat().st_mtime)


def _names(folder: Path, step: str) -> tuple[str, ...]:
    """Return how the files and folders of a step begin: by its name, and by the attempts of its trainings."""
    names = {f"{step}-"}
    with suppress(OSError), events_file(folder).open("rb") as stream:
        for line in stream:
            with suppress(ValueError, KeyError, TypeError, RecursionError, AttributeError):
                event = json.loads(line)
                if event["event"] == "step_started" and step in (
                    event["step"],
                    event["kind"],
                    event["label"].rpartition(" ")[2],
                ):
                    names |= {f"{event['step']}-", f"{event['kind']}.{event['attempt']}"}
    return tuple(names)


def first_error(path: Path) -> FirstError | None:
    """Return the first error of a log, None where it has none."""
    with suppress(OSError), path.open("rb") as handle:
        if (found := _search(handle)) is None:
            return None
        number, start = found
        handle.seek(start)
        lines = [Numbered(number + i, text) for i, text in zip(range(TRACE), _texts(handle), strict=False)]
        if "Traceback" not in lines[0].text:
            return FirstError(path=path, lines=lines[:EXCERPT])
        below = (i for i, line in enumerate(lines) if i and not WHOSE.sub("", line.text).startswith((" ", "\t")))
        inside = next(below, len(lines) - 1)
        shown, last = lines[: inside + 1][:EXCERPT], lines[inside]
        return FirstError(path=path, lines=shown, last=None if last in shown else last)
    return None


def _search(handle: BinaryIO) -> tuple[int, int] | None:
    """Return (number, place) of the line in which an error begins; None without one."""
    number, place, rest = 1, 0, b""
    while piece := handle.read(PIECE):
        text = rest + piece
        whole = text.rfind(b"\n") + 1 or (len(text) if len(text) > PIECE else 0)  # a line may have no end
        if any(word in text for word in WORDS) and (match := ERROR.search(text, 0, whole)):
            return _line(text, match.start(), number, place)
        number, place, rest = number + text.count(b"\n", 0, whole), place + whole, text[whole:]
    match = ERROR.search(rest)
    return _line(rest, match.start(), number, place) if match else None


def _line(text: bytes, at: int, number: int, place: int) -> tuple[int, int]:
    return number + text.count(b"\n", 0, at), place + text.rfind(b"\n", 0, at) + 1


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log, [] where it cannot be read."""
    with suppress(OSError), path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - count * LONGEST))
        return list(deque(_texts(handle), maxlen=count))
    return []


def _texts(handle: BinaryIO) -> Iterator[str]:
    """Yield the lines from here on, as they may be shown; of a longer one its first LONGEST bytes."""
    while line := handle.readline(LONGEST):
        yield plain(line)
        while not line.endswith(b"\n") and (line := handle.readline(LONGEST)):
            pass


def plain(line: bytes) -> str:
    """Return a line as it may be shown: colours gone; of one that was written over itself, the last."""
    text = line.decode("utf-8", errors="replace").rstrip("\r\n").rpartition("\r")[2]
    return printable(COLOUR.sub("", text))


class Tail:
    """What is appended to a log, from its end on, or from its beginning for one that is new."""

    def __init__(self, path: Path, new: bool) -> None:
        self.path, self.place = path, 0
        if not new:
            with suppress(OSError):
                self.place = path.stat().st_size

    def lines(self) -> Iterator[str]:
        """Yield the whole lines that have come since the last call."""
        with suppress(OSError), self.path.open("rb") as handle:
            if self.path.stat().st_size < self.place:  # it was begun anew
                self.place = 0
            handle.seek(self.place)
            while line := handle.readline(LONGEST):
                if not line.endswith(b"\n") and len(line) < LONGEST:
                    return
                self.place += len(line)
                yield plain(line)
