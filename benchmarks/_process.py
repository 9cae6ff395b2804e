"""Processes of a benchmark: started on this checkout's code, and what one says of its own memory and time."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def environment() -> dict[str, str]:
    """Return the environment of a benchmark's process: this checkout first, no hub, no cluster."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {**kept, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def memory_mb(name: str, process: int | str = "self") -> float:
    """Return VmRSS (now) or VmHWM (at most so far) of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def give_back() -> None:
    """Hand memory that is free, but kept by glibc's malloc, back to the system."""
    ctypes.CDLL(None).malloc_trim(0)


def timed(owner: Any, name: str, seconds: dict[str, float]) -> None:
    """Have the calls of owner.name counted in `seconds`."""
    function: Callable[..., Any] = getattr(owner, name)

    def counted(*given: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun

    setattr(owner, name, counted)
