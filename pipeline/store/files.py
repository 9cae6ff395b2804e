"""Files and folders: written so that a kill leaves the old one or the new one, hashed, and checked before use.

A place that the user names is checked before hours are spent on what goes there.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sparring.stages.errors import ConfigError, DataError, full_disk
from sparring.stages.fingerprint import digest
from sparring.stages.step import File, Input, naming, sha256_file

MANIFEST = "manifest.json"
LEASES = ".leases"
"""Folder of the leases in a store."""
RUN_RECORD = "run.json"
"""A folder with this file is the folder of a run."""
RUN_FILES = (RUN_RECORD, "events.jsonl", "config.yaml", "report.html")
"""What `sparring run` and `sparring report` write into the folder of a run."""
LONGEST_BELOW = 256
"""Bytes of path that the store and a run may need below their folder."""


def content_digest(files: Iterable[File]) -> str:
    """Return the sha256 over (logical name, sha256) of all files."""
    return digest({file.name: file.sha256 for file in files})


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Replace the OSError of a full disk by a DataError that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(full_disk(place)) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a small file atomically: after a kill it has the old text or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path):
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)
            os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_target(path: Path, text: str) -> None:
    """Replace a file that the user has named atomically; a pipe or a device is written to, never replaced."""
    if not _is_special(path):
        write_text(path.resolve(), text)
        return
    handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # without a reader a pipe fails at once instead of blocking
    os.set_blocking(handle, True)
    with naming(path), os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)


def files_below(root: Path, names: dict[str, Path]) -> tuple[File, ...]:
    """Return File records of logical name -> absolute path, hashed and synced."""
    for path in names.values():
        sync(path)
    return tuple(
        File(name=name, path=str(path.relative_to(root)), sha256=sha256_file(path), bytes=path.stat().st_size)
        for name, path in sorted(names.items())
    )


def external(role: str, path: Path, hashes: Callable[[Path], str] = sha256_file) -> Input:
    """Return a file of the user's, or all files of a folder, as an input with its content digest.

    Hidden files and folders are left out. `hashes` may be a cached hash. DataError when the path does not exist.
    """
    if not path.exists():
        raise DataError(f"{role}: {path} does not exist; check the path.")
    if path.is_dir():
        root, paths = path, sorted(one for one in path.rglob("*") if one.is_file())
    else:
        root, paths = path.parent, [path]
    names = {one: one.relative_to(root) for one in paths}
    files = tuple(
        File(
            name=role if path.is_file() else str(name),
            path=str(name),
            sha256=hashes(one),
            bytes=one.stat().st_size,
        )
        for one, name in names.items()
        if not any(part.startswith(".") for part in name.parts)
    )
    return Input(role=role, root=root.absolute(), digest=content_digest(files), files=files)


def check_folder(key: str, folder: Path) -> None:
    """ConfigError where nothing can be written into a folder, which need not exist; key: the setting that names it."""
    try:
        place, full = existing(folder), folder.absolute()
        if not (why := _unwritable(place)):
            length, most = len(os.fsencode(full)), os.pathconf(place, "PC_NAME_MAX")
            longest = max(len(os.fsencode(part)) for part in full.parts)
            if longest > most:
                why = f"a name of {longest} bytes is too long, at most {most} are allowed"
            elif length + LONGEST_BELOW > os.pathconf(place, "PC_PATH_MAX"):  # the names below need room too
                why = f"a path of {length} bytes is too long"
    except OSError as error:
        why = str(error.strerror)
    if why:
        raise ConfigError(f"{key}={folder}: {why}; name a folder that can be written.")


def make_folder(key: str, folder: Path) -> None:
    """Make a folder; ConfigError names the key where it cannot be made."""
    check_folder(key, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}={folder}: {error.strerror}; name a folder that can be written.") from None


def existing(folder: Path) -> Path:
    """Return a folder if it exists, else the nearest above it that does."""
    place = folder.absolute()
    while not place.exists() and not place.is_symlink() and place != place.parent:
        place = place.parent
    return place


def check_target(path: Path, option: str) -> None:
    """ConfigError where no file can be written at `path`; option: the option that names it."""
    try:
        if _is_special(path):
            return
        target = path.resolve()
        if target.is_dir() or not target.parent.is_dir():
            raise ConfigError(f"{option} {path}: name a file in an existing folder.")
        if reserved := _reserved(target):
            raise ConfigError(f"{option} {path}: {reserved}; name another file.")
        why = _unwritable(target.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        why = str(getattr(error, "strerror", None) or error)
    if why:
        raise ConfigError(f"{option} {path}: {why}; name a file in a folder that can be written.")


def check_export(folder: Path, option: str) -> None:
    """ConfigError where a folder of the user's would lie in the store or in a run; option: the option that names it."""
    check_folder(option, folder)
    place = folder.resolve()
    run = next((above for above in place.parents if (above / RUN_RECORD).is_file()), None)
    if why := f"{run} is the folder of a run" if run else _reserved(place):
        raise ConfigError(f"{option} {folder}: {why}; name a folder elsewhere.")


def _reserved(place: Path) -> str:
    """Return whose files a place is for, '' where the user may write."""
    store = next((above for above in place.parents if (above / LEASES).is_dir()), None)
    if store:
        return f"{store} is a store"
    of_run = place.name in RUN_FILES and (place.parent / RUN_RECORD).is_file()
    return f"{place.name} is a record of the run" if of_run else ""


def _unwritable(place: Path) -> str:
    """Return why nothing can be written into an existing place, '' where something can."""
    if not place.is_dir():
        return f"{place} is {'a broken link' if place.is_symlink() and not place.exists() else 'not a folder'}"
    if os.access(place, os.W_OK | os.X_OK):
        return ""
    read_only = os.statvfs(place).f_flag & os.ST_RDONLY
    return f"{place} {'is on a read-only file system' if read_only else 'may not be written by this user'}"


def _is_special(path: Path) -> bool:
    """Return whether a path is a pipe, a socket or a device."""
    return path.exists() and not path.is_file() and not path.is_dir()
