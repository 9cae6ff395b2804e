"""A cache of file digests keyed by (path, inode, size, mtime_ns), so that planning does not re-read large files."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from pipeline.job import sha256_file


def cache_folder() -> Path:
    """Return the user's cache: SPARRING_CACHE, else XDG_CACHE_HOME/sparring, else ~/.cache/sparring."""
    base = os.environ.get("SPARRING_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparring"


def cached_sha256(path: Path) -> str:
    """Return the sha256 of a file, from the cache when the file is the one that was hashed."""
    stat = path.stat()
    key = f"{path.absolute()}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}"
    known = _load()
    if key not in known:
        known = {**_load(), key: sha256_file(path)}
        _save(known)
    return known[key]


def _file() -> Path:
    return cache_folder() / "digests.json"


def _load() -> dict[str, str]:
    try:
        known = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _save(known: dict[str, str]) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
        _file().parent.mkdir(parents=True, exist_ok=True)
        temporary = _file().with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(known))
        os.replace(temporary, _file())
