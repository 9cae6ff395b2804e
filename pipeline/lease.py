"""A lease saves work, it is not what keeps artifacts safe: publishing is.

A lease file names its holder (machine, pid, the pid's start time) and carries a counter that a thread moves. It is
dead when its holder is a process of this machine that is gone, or when its counter has not moved for 60 s on the
observer's own monotonic clock. Two holders by mistake only do the work twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, SparringError

BEAT_S = 2.0
DEAD_AFTER_S = 60.0


class LeaseHeld(SparringError):
    """Somebody else holds the lease and is alive."""


def machine() -> str:
    """Return a name of this machine and its pid namespace: pids are compared only where they mean the same."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return f"{socket.gethostname()}:{boot.read_text().strip() if boot.exists() else ''}:{space}"


def started(pid: int) -> str | None:
    """Return the start time of a live process in clock ticks, None when there is none (or it is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


class Lease:
    """Hold `path`; use as a context manager after `acquire`."""

    def __init__(self, path: Path, owner: str) -> None:
        self.path = path
        self.token = uuid.uuid4().hex
        self.owner = owner
        self._counter = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, wait: bool, waiting: Callable[[str], None] = lambda _: None) -> Lease:
        """Take the lease. A live holder: LeaseHeld, or with `wait` call `waiting(holder)` once and wait for its end.

        One of another machine is watched for DEAD_AFTER_S, which `waiting` is told of; a file that no lease has written
        is replaced.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        told, seen, since = False, None, time.monotonic()
        while not self._create():
            holder = self._read()
            if not holder:
                self._remove_garbage()
                continue
            mark = (holder.get("token"), holder.get("counter"))
            if mark != seen:
                if seen is not None and not wait and mark[0] == seen[0]:
                    raise LeaseHeld(_who(holder))
                seen, since = mark, time.monotonic()
            if _gone(holder) or time.monotonic() - since > DEAD_AFTER_S:
                if self._take_over():
                    break
                continue
            if not wait and _alive_here(holder):
                raise LeaseHeld(_who(holder))
            if not told:
                seconds = f"; taken over in {DEAD_AFTER_S:.0f} s if it shows no sign of life"
                waiting(_who(holder) + ("" if _alive_here(holder) else seconds))
                told = True
            time.sleep(0.5)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def release(self) -> None:
        """Give the lease back, if it is still ours."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        if self._read().get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _content(self) -> str:
        pid = os.getpid()
        return json.dumps(
            {
                "token": self.token,
                "machine": machine(),
                "host": socket.gethostname(),
                "pid": pid,
                "started": started(pid),
                "owner": self.owner,
                "counter": self._counter,
            }
        )

    def _create(self) -> bool:
        temporary = self._temporary()
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def _temporary(self) -> Path:
        temporary = self.path.with_name(f".{self.path.name}.{self.token[:8]}.{threading.get_ident()}")
        temporary.write_text(self._content())
        return temporary

    def _remove_garbage(self) -> None:
        """Remove what is no lease: a lease appears whole, so that a damaged one is nobody's."""
        try:
            if self._read() == {}:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{self.path}: no lease, and cannot be removed ({error.strerror}); remove it.") from None

    def _take_over(self) -> bool:
        """Replace a dead lease; False when another observer did so too and was later."""
        os.replace(self._temporary(), self.path)
        time.sleep(0.05)
        return self._read().get("token") == self.token

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            if self._read().get("token") != self.token:
                return
            self._counter += 1
            with contextlib.suppress(OSError):  # a full disk must not end the heartbeat
                os.replace(self._temporary(), self.path)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) and isinstance(content.get("token"), str) else {}


def _gone(holder: dict[str, Any]) -> bool:
    return holder.get("machine") == machine() and not _alive_here(holder)


def _alive_here(holder: dict[str, Any]) -> bool:
    if holder.get("machine") != machine() or not isinstance(holder.get("pid"), int):
        return False
    return started(holder["pid"]) == holder.get("started") is not None


def _who(holder: dict[str, Any]) -> str:
    return f"{holder.get('owner', 'unknown')} (host {holder.get('host', '?')}, pid {holder.get('pid', '?')})"
