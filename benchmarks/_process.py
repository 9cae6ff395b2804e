"""Processes of a benchmark: how they are started, and how they measure their own memory and time."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class ChildFailed(Exception):
    """A process of a benchmark ended before its answer. `stderr`: all that it wrote to stderr."""

    def __init__(self, name: str, stderr: str) -> None:
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        super().__init__(f"{name} ended: {lines[-1] if lines else 'it wrote nothing to stderr'}")
        self.stderr = stderr


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a module of benchmarks/ in a process of its own."""
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


def answer_of(module: str, arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """Run a module of benchmarks/ to its end; return the JSON of its last line. ChildFailed when it has none."""
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            command(module, arguments), stdout=subprocess.PIPE, stderr=errors, text=True, check=False, env=environment()
        )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise ChildFailed(module, log.read_text(encoding="utf-8", errors="replace"))
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def run_to_end(module: str, arguments: Sequence[str], log: Path) -> None:
    """Run a module of benchmarks/ to its end; ChildFailed when it fails."""
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(command(module, arguments), stdout=errors, stderr=errors, check=False, env=environment())
    if done.returncode:
        raise ChildFailed(module, log.read_text(encoding="utf-8", errors="replace"))


def environment() -> dict[str, str]:
    """Return the environment of a benchmark's process: this checkout first, no hub, no cluster."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {**kept, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def memory_mb(name: str, process: int | str = "self") -> float:
    """Return VmRSS (now) or VmHWM (at most so far) of a process."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def trim_memory() -> None:
    """Return free memory that glibc's malloc keeps to the system."""
    ctypes.CDLL(None).malloc_trim(0)


def timed(owner: Any, name: str, seconds: dict[str, float]) -> None:
    """Replace owner.name by a function that adds the time of its calls to seconds[name]."""
    function: Callable[..., Any] = getattr(owner, name)

    def counted(*given: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun

    setattr(owner, name, counted)
