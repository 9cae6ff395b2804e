"""A lease of an artifact or a folder. It saves work; artifacts are kept safe by how they are published, not by leases.

A lease file names its holder (machine, pid, the pid's start time) and has a counter that a thread of the holder
increments. The holder is dead when
- it is a process of this machine that has ended, or
- neither the counter nor the file's time of change moves for 60 s of the observer's monotonic clock, or
- the file was last changed long before a file that the observer has just written beside it, so that no two machines'
  clocks are compared.
The same holds for a lease that cannot be read. A file that is not a lease belongs to nobody, since a lease is created
atomically. If two processes hold a lease by mistake, they only do the work twice.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparring.stages.errors import DataError, SparringError
from sparring.stages.patience import Patience

BEAT_S = 2.0
DEAD_AFTER_S = 60.0
NOBODY: dict[str, Any] = {}
"""Content of a file that is not a lease."""
ABANDONED_S = 300.0
"""A lease that much older than a new file is dead at once: more than a network file system may hide its changes."""


class LeaseHeld(SparringError):
    """Another live process holds the lease."""


def machine() -> str:
    """Return a name of this machine and its pid namespace: pids are compared only where they mean the same."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return f"{socket.gethostname()}:{boot.read_text(encoding='utf-8').strip() if boot.exists() else ''}:{space}"


def started(pid: int) -> str | None:
    """Return the start time of a live process in clock ticks, None when there is none (or it is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease, as its file says."""

    token: str
    owner: str
    host: str
    pid: int
    started: str
    """The pid's start time: another process may have the pid later."""
    since: str
    here: bool
    """Whether it is, or was, a process of this machine and its pid namespace."""
    silent_s: float
    """Seconds since the file last changed, by the clock of its file system; 0 of a process of this machine."""

    @property
    def is_alive(self) -> bool:
        """Whether its process is there; of another machine, whether it gave a sign of life in DEAD_AFTER_S."""
        return started(self.pid) == self.started if self.here else self.silent_s <= DEAD_AFTER_S

    def __str__(self) -> str:
        return f"pid {self.pid} on host {self.host}, since {self.since}"


def holder_of(path: Path) -> Holder | None:
    """Return who holds a lease, dead or alive; None where there is no lease, or none that can be read."""
    try:
        content = json.loads(path.read_bytes())
        here = content["machine"] == machine()
        datetime.fromisoformat(content["since"])
        return Holder(
            **{name: str(content[name]) for name in ("token", "owner", "host", "started", "since")},
            pid=int(content["pid"]),
            here=here,
            silent_s=0.0 if here else silence(path),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def silence(path: Path) -> float:
    """Return the seconds since a file last changed, by the clock that dates files beside it."""
    return max(0.0, file_clock(path.parent) - path.stat().st_mtime)


def file_clock(folder: Path) -> float:
    """Return the time by the clock that dates files in a folder; by this machine's where nothing can be written."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


class Lease:
    """Hold `path`; use as a context manager after `acquire`."""

    def __init__(self, path: Path, owner: str) -> None:
        self.path = path
        self.token = uuid.uuid4().hex
        self.owner, self.since = owner, datetime.now(UTC).isoformat(timespec="seconds")
        self._counter = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, wait: bool, waiting: Callable[[str], None] = lambda _: None) -> Lease:
        """Take the lease. A live holder: LeaseHeld, or with `wait` wait for its end.

        waiting: called at once, and again as time goes by, with the holder and when the lease can be taken over.
        DataError where no lease can be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._acquire(wait, waiting)
        except OSError as error:
            raise DataError(
                f"{self.path}: no lease can be written there ({error.strerror or error}); free space, make the folder "
                "writable or choose another, then run again."
            ) from None
        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*"):  # of processes killed in `_temporary`
            with contextlib.suppress(OSError):
                left.unlink()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def _acquire(self, wait: bool, waiting: Callable[[str], None]) -> None:
        patience, reported, seen = Patience(), False, None
        since, alive, abandoned = time.monotonic(), False, False
        while not self._create():
            if self.path.is_dir():
                raise DataError(f"{self.path} is a folder where a lease file should be; remove it, then run again.")
            holder, changed = self._read(), 0
            with contextlib.suppress(OSError):
                changed = self.path.stat().st_mtime_ns
            if holder is NOBODY:
                waiting(f"nobody: {self.path} is damaged and is replaced")
                if self._take_over():
                    break
                continue
            mark = (holder.get("token"), holder.get("counter"), changed)
            if mark != seen:
                if seen is not None and not wait and mark[0] == seen[0]:
                    raise LeaseHeld(_describe(holder, self.path))
                seen, since, alive = mark, time.monotonic(), _is_alive(holder)
                abandoned = not alive and self._is_abandoned(changed)
            left = DEAD_AFTER_S - (time.monotonic() - since)
            ended = holder.get("machine") == machine() and not _is_alive(holder)
            if ended or left < 0 or abandoned:
                if self._take_over():
                    break
                continue
            if not wait and alive:
                raise LeaseHeld(_describe(holder, self.path))
            if not reported or patience.is_due():
                until = "" if alive else f", taken over in {left:.0f} s unless it shows a sign of life"
                waiting(_describe(holder, self.path) + until)
                reported = True
            time.sleep(min(0.5, DEAD_AFTER_S / 10))

    def _is_abandoned(self, changed: int) -> bool:
        """Return whether a lease changed at `changed` is much older than a file written now."""
        temporary = self._temporary()
        try:
            return bool(changed) and temporary.stat().st_mtime_ns - changed > ABANDONED_S * 1e9
        except FileNotFoundError:  # whoever has just taken the lease removes such files
            return False
        finally:
            temporary.unlink(missing_ok=True)

    def release(self) -> None:
        """Remove the lease, if it is still ours."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        if self._read().get("token") == self.token:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _create(self) -> bool:
        temporary = self._temporary()
        try:
            os.link(temporary, self.path)
        except (FileExistsError, FileNotFoundError):
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _temporary(self) -> Path:
        """Write the lease under a name of this thread's; return its path."""
        temporary = self.path.with_name(f".{self.path.name}.{self.token[:8]}.{threading.get_ident()}")
        content = {
            "token": self.token,
            "machine": machine(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": started(os.getpid()),
            "owner": self.owner,
            "since": self.since,
            "counter": self._counter,
        }
        try:
            temporary.write_text(json.dumps(content), encoding="utf-8")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _take_over(self) -> bool:
        """Replace a dead lease; False when another observer did so too and was later."""
        with contextlib.suppress(FileNotFoundError):
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
        """Return the file's content, NOBODY where it is not a lease, {} where it cannot be read."""
        try:
            content = json.loads(self.path.read_bytes())
        except (ValueError, RecursionError):
            return NOBODY
        except OSError:
            return {}
        return content if isinstance(content, dict) and isinstance(content.get("token"), str) else NOBODY


def _is_alive(holder: dict[str, Any]) -> bool:
    """Return whether a holder is known to be alive, since it is a process of this machine."""
    if holder.get("machine") != machine() or not isinstance(holder.get("pid"), int):
        return False
    return started(holder["pid"]) == holder.get("started") is not None


def _describe(holder: dict[str, Any], path: Path) -> str:
    if "token" not in holder:
        return f"a holder that cannot be read ({path} is damaged)"
    host, since, pid = (holder.get(key, "?") for key in ("host", "since", "pid"))
    return f"{holder.get('owner', 'unknown')} (host {host}, since {since}, pid {pid})"
