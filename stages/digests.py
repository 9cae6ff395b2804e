"""What files and packages are known by: sha256 of files, versions of packages; and the user's cache on disk.

Digests are cached by (path, inode, size, mtime_ns), so that planning does not re-read large files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sparring.stages.errors import ConfigError
from sparring.stages.step import sha256_file

DIGESTS = "digests.json"


def cache_folder() -> Path:
    """Return the user's cache: SPARRING_CACHE, else XDG_CACHE_HOME/sparring, else ~/.cache/sparring.

    ConfigError where SPARRING_CACHE is a name that no folder can have.
    """
    base = os.environ.get("SPARRING_CACHE")
    if base:
        folder = Path(os.path.expanduser(base))
        try:
            folder.exists()
        except OSError as error:
            raise ConfigError(f"SPARRING_CACHE={base}: {error.strerror}; name another folder.") from None
        return folder
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "sparring"


def cached_sha256(path: Path) -> str:
    """Return the sha256 of a file, from the cache when the file is the one that was hashed."""
    stat = path.stat()
    key = f"{path.absolute()}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}"
    digest = load(DIGESTS).get(key)
    if not isinstance(digest, str):
        digest = sha256_file(path)
        save(DIGESTS, {**load(DIGESTS), key: digest})
    return digest


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of the packages that are installed."""
    versions = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def load(name: str) -> dict[str, Any]:
    """Return what a file of the cache holds, {} where it cannot be read."""
    try:
        values = json.loads((cache_folder() / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def save(name: str, values: Mapping[str, Any]) -> None:
    """Replace a file of the cache; a cache that cannot be written costs time only."""
    path = cache_folder() / name
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(values), encoding="utf-8")
        os.replace(temporary, path)
