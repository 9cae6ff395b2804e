"""What killed runs leave on a machine outside their store: temporary folders, and Ray's agents, which notice the end of
their raylet a minute later. The next run removes them, and never those of a live process.

The workers' temporary folder is <tmp>/sparring-<machine>-<pid>-<start time of the pid>: a container or another host
that shares <tmp> has other pids.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import psutil

from sparring.pipeline.store.lease import machine, started

FOLDER = re.compile(r"sparring-([0-9a-f]{8})-(\d+)-(\d+)")
SESSION = re.compile(r"session_[\w-]+")
AGENTS = ("ray/dashboard/agent.py", "ray/_private/runtime_env/agent/main.py")


def own_folder() -> Path:
    """Return the folder of the temporary files of this process's workers."""
    pid = os.getpid()
    return Path(tempfile.gettempdir()) / f"sparring-{_machine()}-{pid}-{started(pid)}"


def remove() -> None:
    """Remove the folders of this user's processes that have ended, and end the agents whose raylet has ended."""
    for path in Path(tempfile.gettempdir()).glob("sparring-*"):
        named = FOLDER.fullmatch(path.name)
        ours = named and named[1] == _machine() and path.stat().st_uid == os.getuid()
        if named and ours and started(int(named[2])) != named[3]:
            shutil.rmtree(path, ignore_errors=True)
    for agent in _orphaned_agents():
        with contextlib.suppress(psutil.Error):
            agent.terminate()


def _machine() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


def _orphaned_agents() -> list[psutil.Process]:
    """Return this user's agents of Ray sessions that have no raylet."""
    agents: list[tuple[psutil.Process, str]] = []
    alive: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            sessions = SESSION.findall(" ".join(words))
            if words and Path(words[0]).name == "raylet":
                alive.update(sessions)
            elif sessions and process.uids().real == os.getuid() and any(word.endswith(AGENTS) for word in words):
                agents.append((process, sessions[0]))
    return [process for process, session in agents if session not in alive]
