"""A process that ends itself before the n-th change of the file system, for every n: crashes without luck.

    python -m tests.crash SCENARIO FOLDER

For each n a child of this process does the scenario and ends, without cleaning up, before its n-th fsync, rename, link,
unlink, mkdir or rmdir; then what it left must be readable, a second child does the same call to its end, and what lies
there must be what an undisturbed call leaves. Nothing may get the name under which it counts before its bytes are on
the disk. Prints one JSON object: how many points there were, and what went wrong at which.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = ("fsync", "rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir")
NAMING = ("rename", "replace", "link")
CRASHED, FAILED = 42, 1
MOST = 1000


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A call that must be safe to break off anywhere and to repeat."""

    prepare: Callable[[Path], None]
    """Makes what is there before; nothing is broken off in it."""
    act: Callable[[Path], None]
    holds: Callable[[Path], str]
    """What is wrong with what a crash has left, '' where nothing is."""
    result: Callable[[Path], Any]
    """What must be the same after a crash and a second call as after one undisturbed call."""
    unsynced: tuple[str, ...] = ()
    """Parts of paths that may get their name before their bytes are on the disk, since nothing rests on them."""


@dataclass
class Points:
    """Counts the calls, and ends the process before one of them."""

    last: int
    unsynced: tuple[str, ...] = ()
    seen: int = 0
    synced: set[tuple[int, int, int]] = field(default_factory=set)
    early: list[str] = field(default_factory=list)
    """Names that were given before the bytes were on the disk."""

    def watch(self) -> None:
        """Put itself before every call of CALLS."""
        for name in CALLS:
            setattr(os, name, self._before(name, getattr(os, name)))

    def _before(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.seen += 1
            if self.seen == self.last:
                os._exit(CRASHED)
            if name in NAMING:
                self._check(Path(args[0]), Path(args[1]))
            if name == "fsync":  # marked, not done: the disk outlives these processes
                return self.synced.add(_mark(os.fstat(args[0])))
            return real(*args, **kwargs)

        return call

    def _check(self, source: Path, target: Path) -> None:
        files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
        for path in files:
            known = any(part in str(target) for part in self.unsynced)
            if path.exists() and not path.is_symlink() and not known and _mark(path.stat()) not in self.synced:
                self.early.append(f"{path.name} -> {target.name}")


def _mark(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def tree(folder: Path) -> dict[str, str]:
    """Return what lies below a folder: relative path -> digest of a file, target of a link, '' of a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else ""
    return found


def child(body: Callable[[], None], started: Callable[[int], None] = lambda pid: None) -> int:
    """Run `body` in a fork of this process, in which no other thread is at work; return its exit code."""
    pid = os.fork()
    if pid:
        started(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = FAILED
    try:
        body()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def explore(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Crash at every point; return {points, wrong: {point: what}, early: names given too early}."""
    early = folder / "early.json"

    def whole(place: Path) -> None:
        points = Points(last=0, unsynced=scenario.unsynced)
        points.watch()
        scenario.act(place)
        early.write_text(json.dumps([points.seen, sorted(set(points.early))]))

    def broken(place: Path, n: int) -> None:
        Points(last=n).watch()
        scenario.act(place)

    place, prepared = folder / "place", folder / "prepared"  # one place for all: links and records hold paths
    place.mkdir()
    if child(lambda: scenario.prepare(place)):
        return {"points": 0, "wrong": {"0": "it could not be prepared"}, "early": []}
    shutil.copytree(place, prepared, symlinks=True)
    if child(lambda: whole(place)):
        return {"points": 0, "wrong": {"0": "the undisturbed call failed"}, "early": []}
    wanted = scenario.result(place)
    count, named_early = json.loads(early.read_text())
    wrong: dict[str, str] = {}
    for n in range(1, min(count, MOST) + 1):
        shutil.rmtree(place)
        shutil.copytree(prepared, place, symlinks=True)
        if (code := child(lambda n=n: broken(place, n))) != CRASHED:  # type: ignore[misc]
            wrong[str(n)] = f"ended with {code} before its {n}th call of {count}"
        elif why := scenario.holds(place):
            wrong[str(n)] = f"after the crash: {why}"
        elif child(lambda: scenario.act(place)):
            wrong[str(n)] = "the second call failed"
        elif (found := scenario.result(place)) != wanted:
            wrong[str(n)] = _difference(wanted, found)
    with suppress(FileNotFoundError):
        early.unlink()
    return {"points": count, "wrong": wrong, "early": named_early}


def _difference(wanted: Any, found: Any) -> str:
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
        return "; ".join(f"{key}: {wanted.get(key)!r} became {found.get(key)!r}" for key in keys)
    return f"{wanted!r} became {found!r}"


def main() -> None:
    """Explore one scenario of tests/crash_scenarios.py."""
    name, folder = sys.argv[1:]
    scenario = getattr(importlib.import_module("tests.crash_scenarios"), name)()
    print(json.dumps(explore(scenario, Path(folder))))


if __name__ == "__main__":
    main()
