"""What a process takes of its machine, for `sparring status`."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from typing import Any

import psutil

EVERY_S = 30.0
"""Seconds between two reports of a worker's memory."""
ASK_S = 5.0
"""Seconds that nvidia-smi has to answer."""


def vitals() -> dict[str, Any]:
    """Return {host, pid, memory}, and with GPUs {gpus, gpu_memory}.

    memory: resident bytes of the process and of those that it has started. gpus: as CUDA_VISIBLE_DEVICES names them.
    gpu_memory: bytes that are in use on them, by whomever.
    """
    own, memory = psutil.Process(), 0
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            memory += process.memory_info().rss
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = [name.strip() for name in visible if name.strip() not in ("", "-1", "NoDevFiles")]
    used = {"gpus": gpus, "gpu_memory": _gpu_memory(gpus)} if gpus else {}
    return {"host": socket.gethostname(), "pid": own.pid, "memory": memory, **used}


def _gpu_memory(gpus: list[str]) -> int | None:
    """Return the bytes in use on these GPUs, None where nvidia-smi does not say. No GPU has run this."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "-i", ",".join(gpus), "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_S)
        return sum(int(line) for line in done.stdout.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
