"""Contenders that stay loaded, each in a process of its own, and compute one at a time, round after round.

A contender's script gets NAME CASES (CASES: a pickled {case: what it is}, of which `warm` is to warm up on) and calls
`serve`; lines in: {"way": .., "case": ..}; lines out: {"ready": true}, then what the way returns with "seconds" and
"cpu_seconds" for each. What a contender prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from benchmarks._process import ChildFailed, command, environment

Ways = Mapping[str, Callable[[Any], dict[str, Any]]]
"""Name of a way -> function that runs a case once and returns its measurements."""


class Contender:
    """A contender's process, and its answers."""

    def __init__(self, script: str, name: str, cases: Path, log: Path) -> None:
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command(script, [name, str(cases)]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(),
            )
        self.name, self.log = name, log

    def answer(self) -> dict[str, Any]:
        """Return its next line; ChildFailed when it has ended."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise ChildFailed(f"the contender {self.name}", self.log.read_text(encoding="utf-8", errors="replace"))
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, way: str, case: str) -> dict[str, Any]:
        """Have it run a round."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # it has ended: `answer` says of what
            self.process.stdin.write(json.dumps({"way": way, "case": case}) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()


@contextmanager
def loaded(script: str, names: Iterable[str], cases: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Contender]]:
    """Start the contenders of a script and yield them by name once all are loaded; afterwards they are stopped."""
    path = folder / "cases"
    path.write_bytes(pickle.dumps(cases))
    with ExitStack() as stack:
        started = []
        for name in names:
            contender = Contender(script, name, path, folder / f"{name}.log")
            stack.callback(contender.stop)
            started.append(contender)
        for contender in started:
            contender.answer()
        yield {contender.name: contender for contender in started}


def ratio(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the median over rounds of value / baseline; the machine's other load changes between rounds."""
    return statistics.median(a / b for a, b in zip(values, baseline, strict=True))


def serve(contenders: Mapping[str, Callable[[Any], Ways]], name: str, path: str) -> None:
    """Be the contender `name`: load, warm up, then answer."""
    out = answers()
    cases: dict[str, Any] = pickle.loads(Path(path).read_bytes())
    ways = contenders[name](cases)
    for way in ways.values():
        way(cases["warm"])
    print(json.dumps({"ready": True}), file=out)
    for line in sys.stdin:
        request = json.loads(line)
        begun, cpu = time.perf_counter(), time.process_time()
        found = ways[request["way"]](cases[request["case"]])
        spent = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps({**found, **spent}), file=out)


def answers() -> TextIO:
    """Return the original stdout; redirect later prints to stderr."""
    kept = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return kept
