"""What a step receives and what it returns: the only types that `stages` and `pipeline` share.

A stage declares a `StepSpec` beside its configuration and implements a worker class. The worker sees a `Job` (its
settings, its inputs) and turns each `Shard` into a `Part`; writing, retrying and publishing are the orchestrator's.
Light on purpose: pyarrow is imported only where a table is read.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from sparring.stages.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Settings = TypeVar("Settings", default=Any)
"""The settings of one kind of step: a frozen dataclass beside its StepSpec."""


def resolve(path: str) -> Callable[..., Any]:
    """Return what "module:attribute" names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """How one kind of step is run. `worker`, `shards`, `finish` and `run` are "module:attribute" paths.

    A sharded step names `worker` (class), `shards` (Job -> list[Shard]) and `finish` (Job, tables, parts -> summary).
    A step that drives its own workers (training) names `run` instead: (Job, report, received) -> what stage.Trained
    holds; `received` returns the signal on which the step saves its state and raises Stopped, or 0.
    """

    kind: str
    version: int
    worker: str = ""
    shards: str = ""
    finish: str = ""
    run: str = ""
    prepare: str = ""
    """Job without inputs -> None: what a worker may do before its step's inputs exist, such as slow imports."""
    modules: str = ""
    """Settings -> names of the modules that the step takes by name, such as its oracle's: they are part of its code."""
    at_once: str = ""
    """Returns how many shards a worker of a job computes at once, each in a thread of its own; "": 1."""
    narrow: str = ""
    """(Shard, rows to keep) -> Shard, of a step whose shards can be tried in parts: a prompt that kills or hangs its
    worker is identified, dropped and counted as `poison`."""
    pool: str = "tasks"
    """Where its workers live. `engines`: a process loads its models once and ends with them. `annotators`: a process
    serves one step after another, and keeps what stages/loaded.py keeps for the next one. `tasks`: none is kept.
    `in_process`: in the driver's own process, without Ray."""


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of an artifact or of an external folder."""

    name: str
    """Logical name, stable over attempts: `part-00007.parquet`, `model/model.safetensors`."""
    path: str
    """Its path, relative to the root: `part-00007.1f3a.parquet`."""
    sha256: str
    bytes: int


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file, read in blocks."""
    with naming(path), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


LARGE = 16 << 20
"""Bytes from which a file is hashed once for all processes of a machine."""
RACY_NS = 2_000_000_000
"""A file that was changed so shortly before it was read may change again without another time of change."""


def sha256_once(path: Path) -> str:
    """Return the hex sha256 of a file. A large one is read by one process of a machine, and again when it changed.

    What was found is noted in the temporary folder, by inode, size and times of change; the others wait for it.
    """
    if path.stat().st_size < LARGE:
        return sha256_file(path)
    folder = Path(tempfile.gettempdir()) / f"sparring-verified-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            return sha256_file(path)
        inode = path.stat()
        note = (folder / f"{inode.st_dev:x}-{inode.st_ino:x}").open("a+", encoding="utf-8")
    except OSError:  # it saves time alone
        return sha256_file(path)
    with note:
        fcntl.flock(note, fcntl.LOCK_EX)
        note.seek(0)
        noted, before, now = note.read().split(), _stamp(path), time.time_ns()
        if noted[:-1] == before:
            return noted[-1]
        digest = sha256_file(path)
        if _stamp(path) == before and max(map(int, before[-2:])) < now - RACY_NS:
            with suppress(OSError):
                note.truncate(0)
                note.write(" ".join([*before, digest]))
        return digest


def _stamp(path: Path) -> list[str]:
    found = path.stat()
    values = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return [str(value) for value in values]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the errors of reading and writing it; Python's own name it on opening alone."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@dataclass(frozen=True, kw_only=True)
class Input:
    """A finished artifact, or an external file or folder, opened by role. Every file is verified when it is opened."""

    role: str
    root: Path
    digest: str
    files: tuple[File, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    wanted: tuple[str, str, str] | None = None
    """(kind, repository, commit) still to be downloaded from the hub."""
    pull: Callable[[Path, File], None] | None = None
    """Puts a file at its path where it is not there, or is damaged, and checks it; None: all files are there."""

    @cached_property
    def parts(self) -> list[File]:
        """The parquet parts, in shard order."""
        return sorted((f for f in self.files if f.name.startswith("part-")), key=lambda f: f.name)

    @property
    def n_parts(self) -> int:
        """Number of parquet parts."""
        return len(self.parts)

    def table(self, index: int, columns: list[str] | None = None) -> pa.Table:
        """Read part `index`; DataError if its bytes are not the recorded ones."""
        import pyarrow.parquet as pq

        return pq.read_table(self._verified(self.parts[index]), columns=columns)

    def file(self, name: str) -> Path:
        """Return the file of that logical name, verified."""
        for file in self.files:
            if file.name == name:
                return self._verified(file)
        raise DataError(f"{self.root}: has no {name}; run `sparring verify`, then run again.")

    def folder(self) -> Path:
        """Return the model folder, every file verified (`model/` of a train artifact, else the external folder)."""
        for file in self.files:
            self._verified(file)
        inside = [f for f in self.files if f.name.startswith("model/")]
        return self.root / Path(inside[0].path).parts[0] if inside else self.root

    def _verified(self, file: File) -> Path:
        path = self.root / file.path
        there = path.is_file()
        if there and sha256_once(path) == file.sha256:
            return path
        if self.pull:
            self.pull(path, file)
            return path
        if not there:
            raise DataError(f"{path}: missing although recorded as {self.role}; run `sparring verify`, then run again.")
        raise DataError(
            f"{path}: its bytes changed since it was recorded (sha256 differs); "
            "run `sparring verify` to set the artifact aside, then run again."
        )


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that do a step."""

    count: int = 1
    """0: as many as the cluster has room for."""
    cpus: int = 1
    """Cores of each."""
    gpus: int = 0
    """GPUs of each."""
    max_failures: int = 2
    """Times that a shard, the loading of models, a light task or a training that failed is tried again; when it fails
    once more, the step fails. Not counted: a training that starts again with a smaller micro-batch because memory ran
    out, or from the checkpoint that it saved when one of its workers got SIGTERM."""
    deadline_s: float = math.inf
    """Seconds that a shard may take; then its worker is ended, which counts as a failure."""

    def gives_up(self, failures: int) -> bool:
        """Return whether the step fails after so many failures of one shard, or of one worker that loads its models."""
        return failures > self.max_failures


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where Ray may place workers now."""

    nodes: Mapping[str, Mapping[str, float]]
    """Ray's id of each node -> its resources by Ray's names: {"CPU": 16, "GPU": 8}."""
    selector: dict[str, str]
    """Ray's label selector that keeps workers on these nodes; {}: no node is kept out."""

    def capacity(self, workers: Workers) -> int:
        """Return how many workers these nodes hold at the same time when nothing else runs there."""
        needed = {kind: n for kind, n in (("CPU", workers.cpus), ("GPU", workers.gpus)) if n}
        if not needed:
            return sys.maxsize
        return sum(min(int(has.get(kind, 0) // n) for kind, n in needed.items()) for has in self.nodes.values())


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Settings]):
    """One step to execute."""

    spec: StepSpec
    fingerprint: str
    settings: Settings
    workers: Workers = field(default_factory=Workers)
    inputs: dict[str, Input]
    out: Path
    """The artifact's folder in the store."""
    attempt: str
    """Short random name of this attempt; files of an attempt carry it."""
    scratch: Path
    """A folder under the run for logs."""
    code: str = ""
    """Digest of the modules that compute it: unfinished shards and checkpoints of other code are not resumed."""
    store: str = ""
    """Address of the bucket that its artifact goes to, `s3://bucket/prefix`; '' for a store on a file system."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The unit of work and of resume. `payload` is small and picklable."""

    index: int
    payload: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a worker makes of a shard: rows_in == table.num_rows + sum(dropped.values())."""

    table: pa.Table
    rows_in: int
    dropped: dict[str, int] = field(default_factory=dict)
    stats: dict[str, float] = field(default_factory=dict)
    """Additive numbers (counts, sums), e.g. tokens; may hold no times."""
