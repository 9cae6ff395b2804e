"""A large file is hashed once for the processes of a machine, and again when it changed in any way."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparring.stages import step
from sparring.stages.errors import DataError
from sparring.stages.step import File, Input
from tests.refusals import refused


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, of which 4 bytes are large."""
    paths: list[Path] = []
    plain = step.sha256_file

    def counted(path: Path) -> str:
        paths.append(path)
        return plain(path)

    monkeypatch.setattr(step, "LARGE", 4)
    monkeypatch.setattr(step, "RACY_NS", -(10**12))
    monkeypatch.setattr(step, "sha256_file", counted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    return paths


def model(path: Path, content: bytes = b"weights") -> Input:
    path.write_bytes(content)
    file = File(name=path.name, path=path.name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    return Input(role="policy", root=path.parent, digest="", files=(file,))


def test_many_readers_hash_a_file_once(tmp_path: Path, read: list[Path]) -> None:
    policy = model(tmp_path / "model.safetensors")
    with ThreadPoolExecutor(8) as actors:
        assert set(actors.map(lambda _: policy.folder(), range(8))) == {tmp_path}
    assert len(read) == 1


def test_small_files_are_read_each_time(tmp_path: Path, read: list[Path]) -> None:
    small = model(tmp_path / "part.parquet", b"abc")
    assert [small.folder(), small.folder()] == [tmp_path] * 2 and len(read) == 2


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_file_of_other_bytes_is_found_whatever_its_size_and_time_say(
    tmp_path: Path, read: list[Path], how: str
) -> None:
    path = tmp_path / "model.safetensors"
    policy = model(path)
    policy.folder()
    times = path.stat()
    time.sleep(0.05)  # beyond a tick of the file system
    if how == "replaced":
        (tmp_path / "other").write_bytes(b"WEIGHTS")
        (tmp_path / "other").replace(path)
    else:
        path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with refused(DataError, str(path), "sparring verify"):
        policy.folder()


def test_what_has_just_been_written_is_read_again(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the file system's tick another write would leave the same time."""
    monkeypatch.setattr(step, "RACY_NS", 2_000_000_000)
    policy = model(tmp_path / "model.safetensors")
    assert [policy.folder(), policy.folder()] == [tmp_path] * 2 and len(read) == 2


def test_without_a_place_for_notes_each_reader_hashes(tmp_path: Path, read: list[Path]) -> None:
    (tmp_path / "node").rmdir()
    (tmp_path / "node").write_text("a file")
    policy = model(tmp_path / "model.safetensors")
    assert [policy.folder(), policy.folder()] == [tmp_path] * 2 and len(read) == 2
