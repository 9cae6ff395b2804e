"""A store in a bucket of an object store: paths.store=s3://bucket/prefix. Nodes need no file system in common.

    s3://bucket/prefix/pairs-3f9c2a1b/manifest.json   created last, by a conditional put: the first writer wins
    s3://bucket/prefix/pairs-3f9c2a1b/part-00007.<attempt>.parquet
    s3://bucket/prefix/input-4be1…/                   a model or a file of the user's, for the nodes that lack it

The bucket decides what is made. Each node has a folder beside it, in its user's cache and laid out as a store on a file
system is: files are written there and then uploaded, and a file that is read is downloaded once, checked by its digest
and renamed into place. Manifests are copied there whenever the bucket is listed.

What the folder alone has: leases, which so hold between the processes of one machine (drivers on two machines may both
make a step; the first manifest counts, and the other driver adopts it), and the checkpoints of a training, whose
workers run on the driver's node.

Endpoint, region and credentials are those that AWS's tools find on a node (AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE,
a role ...). They are in no setting, and no message has them.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import hashlib
import os
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sparring.pipeline.store.files import MANIFEST, disk_errors, sync
from sparring.stages.digests import cache_folder
from sparring.stages.errors import RUN_AGAIN, ConfigError, DataError, SparringError
from sparring.stages.fingerprint import digest
from sparring.stages.step import File, Input, Job, sha256_file

SCHEME = "s3://"
PLACE = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*)*")
TRIES = 9
"""Of a request: the first one, then after 0.1 s, and each time after 1.7 times as long as before, 10 s in all."""
DOWNLOADS = 3
"""Times that a file is downloaded until its bytes are those that were recorded."""
SIDE_BY_SIDE = 16
"""Small files that are read at the same time."""
REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403")
"""Codes of a server that does not accept the credentials."""
LOST = ("PreconditionFailed", "412")
"""Codes of a conditional put that another writer has won."""


@dataclass(frozen=True, kw_only=True)
class Object:
    """An object of the bucket as the server lists it."""

    bytes: int
    etag: str
    modified: datetime
    """By the server's clock."""


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Downloads files of an artifact (or of an input of the user's) on whatever node it is called."""

    url: str
    name: str

    def __call__(self, path: Path, file: File) -> None:
        """Put the file at `path`; DataError where the bucket does not have its bytes."""
        connect(self.url).pull(self.name, path, file)


class Remote:
    """A prefix of a bucket, and the folder of this node beside it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bucket, _, self.prefix = url.removeprefix(SCHEME).partition("/")
        self.folder = cache_folder().absolute() / "stores" / f"{self.bucket}-{digest(url)[:8]}"
        self.objects: dict[str, dict[str, Object]] = {}
        """Artifact -> path below it -> object, as they were listed last."""

    def refresh(self, name: str = "") -> None:
        """List the bucket anew, or one artifact in it, and bring the copies of its manifests up to date."""
        listed: dict[str, dict[str, Object]] = {name: {}} if name else {}
        for key, found in self._list(f"{name}/" if name else ""):
            artifact, _, path = key.partition("/")
            listed.setdefault(artifact, {})[path] = found
        if name:
            self.objects[name] = listed[name]
        else:
            self.objects = listed
            listed = {path.parent.name: {} for path in self.folder.glob(f"*/{MANIFEST}")} | listed
        with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
            list(threads.map(self._copy_manifest, listed))

    def listed(self, name: str, path: str) -> Object | None:
        """Return an object of an artifact, None where it was not listed."""
        return self.objects.get(name, {}).get(path)

    def fault(self, name: str, file: File, *, rehash: bool = False) -> str:
        """Return what is wrong with a file, by its listed size or, with `rehash`, by its bytes; '' where nothing is."""
        place, found = f"{self.url}/{name}/{file.path}", self.listed(name, file.path)
        if found is None:
            return f"{place} is missing"
        if found.bytes != file.bytes:
            return f"{place} has {found.bytes} bytes, recorded {file.bytes}"
        if rehash and self._sha256(f"{name}/{file.path}") != file.sha256:
            return f"{place}: sha256 differs from the manifest"
        return ""

    def upload(self, name: str, folder: Path, files: Iterable[File]) -> None:
        """Put those files of a folder that the listing lacks; DataError where one is not in the folder either."""
        for file in files:
            if self.fault(name, file):
                if not (folder / file.path).is_file():
                    raise DataError(f"{self.url}/{name}/{file.path}: neither there nor in {folder}; {RUN_AGAIN}")
                self.put(f"{name}/{file.path}", folder / file.path)

    def put(self, key: str, path: Path) -> None:
        """Put a file, in parts where it is large."""
        with self._explained(f"writing {key}"):
            self._files().put_file(str(path), self._path(key))

    def create(self, key: str, content: bytes, replaces: str = "") -> bool:
        """Put an object where there is none, or only the one with the ETag `replaces`; return whether ours is there.

        A put that succeeded and whose answer was lost is refused when it is repeated: so the bytes decide.
        """
        condition = {"IfMatch": replaces} if replaces else {"IfNoneMatch": "*"}
        try:
            with self._explained(f"writing {key}"):
                self._call("put_object", Key=self._key(key), Body=content, **condition)
            return True
        except FileExistsError:
            return self.read(key) == content
        except FileNotFoundError:  # what was to be replaced is gone
            return self.create(key, content)

    def read(self, key: str) -> bytes | None:
        """Return the bytes of a small object, None where there is none."""
        try:
            with self._explained(f"reading {key}"):
                content: bytes = self._files().cat_file(self._path(key))
                return content
        except FileNotFoundError:
            return None

    def remove(self, name: str, paths: Iterable[str]) -> None:
        """Delete objects of an artifact."""
        paths = list(paths)
        for first in range(0, len(paths), 1000):
            some = paths[first : first + 1000]
            keys = [{"Key": self._key(f"{name}/{path}")} for path in some]
            with self._explained(f"deleting files of {name}"):
                done = self._call("delete_objects", Delete={"Objects": keys, "Quiet": True})
            if errors := done.get("Errors"):
                why = f"{len(errors)} files could not be deleted ({errors[0].get('Code')})"
                raise DataError(f"{self.url}/{name}: {why}; {RUN_AGAIN}")
            for path in some:
                self.objects.get(name, {}).pop(path, None)

    def set_aside(self, name: str) -> None:
        """Delete an artifact, its manifest first."""
        self.refresh(name)
        self.remove(name, [MANIFEST])
        self.remove(name, self.objects[name])

    def tidy(self, name: str, keep: set[str]) -> None:
        """Delete what the manifest does not name and was there before it: later files belong to its successor."""
        published = self.listed(name, MANIFEST)
        others = {path: found for path, found in self.objects[name].items() if path not in keep and path != MANIFEST}
        if published:
            self.remove(name, [path for path, found in others.items() if found.modified <= published.modified])

    def pull(self, name: str, path: Path, file: File) -> None:
        """Download a file of an artifact to `path`, one process of this node at a time; nothing where it is there.

        DataError where its bytes are not those that were recorded.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        turn, temporary = self.folder / ".pulls" / file.sha256, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        turn.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(self.folder), turn.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process that holds it
            if path.is_file() and sha256_file(path) == file.sha256:
                return
            for attempt in range(DOWNLOADS):
                time.sleep(attempt)
                try:
                    with self._explained(f"reading {name}/{file.path}"):
                        self._files().get_file(self._path(f"{name}/{file.path}"), str(temporary))
                    if sha256_file(temporary) == file.sha256:
                        sync(temporary)
                        os.replace(temporary, path)
                        return
                except FileNotFoundError:
                    raise DataError(f"{self.url}/{name}/{file.path}: missing although recorded; {VERIFY}") from None
                except DataError:
                    if attempt == DOWNLOADS - 1:
                        raise
                finally:
                    temporary.unlink(missing_ok=True)
        raise DataError(
            f"{self.url}/{name}/{file.path}: its bytes are not the recorded ones (sha256 differs); {VERIFY}"
        )

    def copy_records(self, name: str, pattern: str) -> None:
        """List an artifact anew and copy its small files of a pattern into the folder of this node."""
        self.refresh(name)

        def copy(path: str) -> None:
            place = self.folder / name / path
            if not place.exists() and (content := self.read(f"{name}/{path}")) is not None:
                _replace(place, content)

        with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
            list(threads.map(copy, fnmatch.filter(self.objects[name], pattern)))

    def check_conditional(self) -> None:
        """ConfigError where the server does not keep the first of two manifests, so that a run could overwrite another.

        It writes a marker, and so sees too whether this user may write.
        """
        if self.create(".store", uuid.uuid4().bytes) and self.create(".store", b""):
            raise ConfigError(
                f"paths.store={self.url}: the server ignores If-None-Match, by which the first of two writers wins; "
                "choose a server that has conditional puts."
            )

    def _copy_manifest(self, name: str) -> None:
        path, found = self.folder / name / MANIFEST, self.listed(name, MANIFEST)
        if found and path.is_file():
            content: bytes | None = path.read_bytes()
            if hashlib.md5(content or b"", usedforsecurity=False).hexdigest() == found.etag:
                return
        content = self.read(f"{name}/{MANIFEST}") if found else None
        if found and content is not None:
            _replace(path, content)
            os.utime(path, (found.modified.timestamp(),) * 2)
        else:
            path.unlink(missing_ok=True)

    def _sha256(self, key: str) -> str:
        with self._explained(f"reading {key}"), self._files().open(self._path(key), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _list(self, below: str) -> Iterator[tuple[str, Object]]:
        """Yield (key below the prefix, object)."""
        start = self._key("")
        page: dict[str, Any] = {}
        while True:
            with self._explained("listing it"):
                after = {"ContinuationToken": page["NextContinuationToken"]} if page else {}
                page = self._call("list_objects_v2", Prefix=start + below, **after)
            for one in page.get("Contents", ()):
                etag, modified = one["ETag"].strip('"'), one["LastModified"]
                yield one["Key"].removeprefix(start), Object(bytes=one["Size"], etag=etag, modified=modified)
            if not page.get("IsTruncated"):
                return

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _path(self, key: str) -> str:
        return f"{self.bucket}/{self._key(key)}"

    def _call(self, method: str, **arguments: Any) -> Any:
        return self._files().call_s3(method, Bucket=self.bucket, **arguments)

    def _files(self) -> Any:
        return _file_system(os.getpid())

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Replace an error of the server or the network by one that says what to do.

        FileNotFoundError where there is no such object, FileExistsError where a conditional put comes too late.
        """
        try:
            yield
        except SparringError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and (error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)):
                raise  # of this node's folder
            code, place = _code(error), f"paths.store={self.url}"
            if code in LOST or isinstance(error, FileExistsError):
                raise FileExistsError(self.url) from None
            if code == "NoSuchBucket":
                raise ConfigError(f"{place}: there is no such bucket; create it, or name another.") from None
            if isinstance(error, FileNotFoundError):
                raise
            if code in REFUSED or isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
                why = f"the server refuses the credentials ({code})" if code else "no complete credentials are found"
                raise ConfigError(
                    f"{place}: {why} when {what}; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, on "
                    "every node, to those of a user that may list, read, write and delete there."
                ) from None
            raise DataError(
                f"{place}: {what} failed ({code or type(error).__name__}; at most {TRIES} tries); check the network, "
                f"the server (AWS_ENDPOINT_URL) and AWS_REGION, then {RUN_AGAIN}"
            ) from None


VERIFY = "run `sparring verify --store` with the address of the store, then run again."


_REMOTES: dict[Path, Remote] = {}
"""Folder of this node -> the store beside it; those that this process has opened."""


def connect(url: str) -> Remote:
    """Return the store at an address; nothing is asked of it yet."""
    remote = Remote(url)
    return _REMOTES.setdefault(remote.folder, remote)


@cache
def _announce(url: str) -> None:
    print(f"{url}: reading what the store has", file=sys.stderr)


@cache
def _file_system(pid: int) -> Any:
    """Return the client of this process, which repeats each request and no larger piece of work."""
    import s3fs
    from s3fs.core import set_custom_error_handler

    set_custom_error_handler(_may_pass)
    once = {"retries": {"mode": "standard", "total_max_attempts": 1}}
    files = s3fs.S3FileSystem(config_kwargs=once, use_listings_cache=False, skip_instance_cache=True)
    files.retries = TRIES
    return files


def _may_pass(error: BaseException) -> bool:
    """Return whether a request that failed may succeed when it is repeated: the server is busy or broke it off."""
    from botocore.exceptions import ConnectionError as Unreachable  # s3fs itself gives up at once

    response = getattr(error, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return isinstance(error, ConnectionError | Unreachable) or status >= 500 or status in (408, 409, 429)


def _code(error: BaseException) -> str:
    """Return the server's code of an error, '' where it has none."""
    for one in (error, error.__cause__):
        if response := getattr(one, "response", None):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def check_address(place: str) -> str:
    """Return the address of a bucket; ConfigError, which does not repeat what may have a password, where it is none."""
    if not PLACE.fullmatch(place := place.rstrip("/")):
        raise ConfigError(
            f"paths.store: this {place.partition('://')[0]}:// is no place for a store; name a folder, or "
            "s3://bucket/prefix without credentials and options."
        )
    return place


def opened(place: str) -> Path:
    """Return the folder of a store on this node; of one in a bucket, which is listed anew, the folder beside it.

    ConfigError where the bucket cannot be used, DataError where it does not answer.
    """
    if is_bucket(place):
        if find_spec("s3fs") is None:
            raise ConfigError("paths.store: s3:// needs a package that is not installed; pip install 'sparring[s3]'.")
        _announce(place)
        connect(place).refresh()
    return folder_of(place)


def is_bucket(place: str) -> bool:
    """Return whether paths.store is the address of a bucket."""
    return place.startswith(SCHEME)


def folder_of(place: str) -> Path:
    """Return what `opened` does, and ask nothing of a bucket."""
    return connect(place).folder if is_bucket(place) else Path(place)


def of(store: Path) -> Remote | None:
    """Return the bucket beside a folder that `opened` returned, None for a store on a file system."""
    return _REMOTES.get(store)


def localised(job: Job) -> Job:
    """Return a job with this node's folders in place of the driver's; its files are downloaded as they are read."""
    if not job.store:
        return job
    remote = connect(job.store)

    def here(source: Input) -> Input:
        if source.root.parent == job.out.parent:
            return replace(source, root=remote.folder / source.root.name)
        if all(_has_size(source.root / file.path, file.bytes) for file in source.files):
            return source
        name = input_name(source)
        return replace(source, root=remote.folder / name, pull=Pull(url=job.store, name=name))

    inputs = {role: here(source) for role, source in job.inputs.items()}
    return replace(job, out=remote.folder / job.out.name, inputs=inputs)


def pull_of(job: Job) -> Pull | None:
    """Return what downloads the parts of a job that other nodes have made, None for a store on a file system."""
    return Pull(url=job.store, name=job.out.name) if job.store else None


def share(remote: Remote, source: Input) -> None:
    """Upload a model or a file of the user's, once, for the nodes that lack it."""
    name = input_name(source)
    if any(remote.fault(name, file) for file in source.files):
        remote.upload(name, source.root, source.files)
        remote.refresh(name)


def input_name(source: Input) -> str:
    """Return the name of an input of the user's in the bucket."""
    return f"input-{source.digest[:16]}"


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _replace(path: Path, content: bytes) -> None:
    """Write a small file at once; the bucket has it too, so that it need not be on the disk yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
