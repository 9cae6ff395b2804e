"""Artifacts: the first manifest wins, what is corrupt is found and never used, nothing is lost."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparring.pipeline.store.files import external
from sparring.pipeline.store.manifest import Artifact, CorruptManifest, Manifest, publish, tidy
from sparring.pipeline.store.parts import finished_parts, write_part
from sparring.stages import errors
from sparring.stages.errors import DataError
from sparring.stages.step import File, Input, Job, Part, Shard, StepSpec
from tests.refusals import named, refused

FINGERPRINT = "ab" * 32


def job_in(store: Path, attempt: str = "aaaa1111", upstream: str = "u1") -> Job:
    return Job(
        spec=StepSpec(kind="pairs", version=1),
        fingerprint=FINGERPRINT,
        settings={},
        inputs={"samples": Input(role="samples", root=store, digest=upstream)},
        out=Artifact(store, "pairs", FINGERPRINT).path,
        attempt=attempt,
        scratch=store,
    )


def part(rows: int = 3, **fields: Any) -> Part:
    table = pa.table({"id": [f"row-{i}" for i in range(rows)]})
    return Part(table=table, rows_in=fields.pop("rows_in", rows), **fields)


def manifest_of(records: list[dict[str, Any]], attempt: str = "aaaa1111") -> Manifest:
    return Manifest(
        fingerprint=FINGERPRINT,
        step="pairs",
        version=1,
        identity={},
        inputs={"samples": {"name": "n", "digest": "u1"}},
        files=tuple(File(**record["file"]) for record in records),
        rows={"in": 3, "out": 3, "dropped": {}},
        summary={"mean": 0.25},
        seconds=1.5,
        stats={},
        attempts=[attempt],
        made_with={},
    )


def test_published_manifest_reads_back(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path, "pairs", FINGERPRINT)
    assert artifact.manifest() is None
    written = publish(artifact, manifest_of([write_part(job_in(tmp_path), Shard(index=0), part(), 1.0)]))
    assert artifact.manifest() == written
    assert not list(artifact.damaged_files(written, rehash=True))
    assert artifact.as_input("samples", written).table(0).num_rows == 3


def test_first_writer_wins_and_the_loser_adopts(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path, "pairs", FINGERPRINT)
    first = manifest_of([write_part(job_in(tmp_path, "aaaa1111"), Shard(index=0), part(), 1.0)])
    second = manifest_of([write_part(job_in(tmp_path, "bbbb2222"), Shard(index=0), part(), 1.0)], "bbbb2222")
    publish(artifact, first)
    standing = publish(artifact, second)
    tidy(artifact, standing)
    assert standing.attempts == ["aaaa1111"]
    assert sorted(p.name for p in artifact.path.iterdir()) == ["manifest.json", "part-00000.aaaa1111.parquet"]


def test_content_does_not_depend_on_the_attempt(tmp_path: Path) -> None:
    first = manifest_of([write_part(job_in(tmp_path, "aaaa1111"), Shard(index=0), part(), 1.0)])
    second = manifest_of([write_part(job_in(tmp_path, "bbbb2222"), Shard(index=0), part(), 9.0)])
    other = manifest_of([write_part(job_in(tmp_path, "cccc3333"), Shard(index=0), part(4), 1.0)])
    assert first.content == second.content != other.content


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: raw.replace(b"0.25", b"0.26"), lambda raw: b""]
)
def test_a_corrupt_manifest_is_named(tmp_path: Path, damage: Any) -> None:
    artifact = Artifact(tmp_path, "pairs", FINGERPRINT)
    publish(artifact, manifest_of([write_part(job_in(tmp_path), Shard(index=0), part(), 1.0)]))
    path = artifact.path / "manifest.json"
    path.write_bytes(damage(path.read_bytes()))
    with refused(CorruptManifest, "manifest.json"):
        artifact.manifest()


def test_a_flipped_byte_in_a_shard_is_found_when_it_is_opened(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path, "pairs", FINGERPRINT)
    written = publish(artifact, manifest_of([write_part(job_in(tmp_path), Shard(index=0), part(), 1.0)]))
    path = artifact.path / written.files[0].path
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with refused(DataError, path.name, "changed"):
        artifact.as_input("samples", written).table(0)
    assert not list(artifact.damaged_files(written)), "its size is the recorded one"
    (found,) = artifact.damaged_files(written, rehash=True)
    named(found, f"{path}: ", "sha256")


def test_only_finished_parts_of_this_very_job_are_resumed(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    for index in range(4):
        write_part(job, Shard(index=index), part(), 1.0)
    (job.out / "part-00001.aaaa1111.json").unlink()
    (job.out / "part-00002.aaaa1111.parquet").write_bytes(b"damaged")
    (job.out / "part-00003.aaaa1111.json").write_text("{")
    assert set(finished_parts(job_in(tmp_path, "bbbb2222"))) == {0}
    assert finished_parts(job_in(tmp_path, "bbbb2222", upstream="u2")) == {}


def test_a_lost_row_is_refused(tmp_path: Path) -> None:
    with refused(DataError, "1 rows"):
        write_part(job_in(tmp_path), Shard(index=0), part(3, rows_in=5, dropped={"tie": 1}), 1.0)


def test_external_folder_digest_follows_bytes_and_names(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"1")
    (folder / ".hidden").write_bytes(b"x")
    first = external("policy", folder)
    assert [file.name for file in first.files] == ["a.bin"]
    (folder / "a.bin").write_bytes(b"2")
    assert external("policy", folder).digest != first.digest


def test_external_file_digest_does_not_follow_its_path(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("{}")
    assert external("source", tmp_path / "a.jsonl").digest == external("source", tmp_path / "b.jsonl").digest


def test_a_missing_external_is_named(tmp_path: Path) -> None:
    with refused(DataError, "policy", str(tmp_path / "nowhere")):
        external("policy", tmp_path / "nowhere")


FULL = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np, pyarrow as pa
sys.path.insert(0, {root!r})
from sparring.pipeline.store.parts import write_part
from sparring.stages.errors import DataError
from sparring.stages.step import Job, Part, Shard, StepSpec
out = Path({place!r}) / "pairs-abababab"
job = Job(spec=StepSpec(kind="pairs", version=1), fingerprint="ab" * 32, settings={{}}, inputs={{}},
          out=out, attempt="aaaa1111", scratch=out)
table = pa.table({{"x": np.random.default_rng(0).random(400_000)}})
try:
    write_part(job, Shard(index=0), Part(table=table, rows_in=400_000), 1.0)
except DataError as error:
    print(error)
    print(sorted(p.name for p in out.glob("part-*.parquet")), sorted(p.name for p in out.glob("part-*.json")))
"""


def test_a_full_disk_is_one_message_and_no_part(tmp_path: Path) -> None:
    """A real one: a file system of one MiB, mounted in a namespace of its own."""
    place = tmp_path / "small"
    place.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {place}"
    probe = subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this machine does not allow mounting in a user namespace")
    code = FULL.format(root=os.getcwd(), place=str(place))
    script = tmp_path / "full.py"
    script.write_text(code)
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f"{mount} && {sys.executable} {script}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "disk is full" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "[] []"


def test_a_manifest_is_json_a_person_can_read(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path, "pairs", FINGERPRINT)
    publish(artifact, manifest_of([write_part(job_in(tmp_path), Shard(index=0), part(), 1.0)]))
    body = json.loads((artifact.path / "manifest.json").read_text())
    assert body["step"] == "pairs" and body["rows"]["in"] == 3


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (RuntimeError("CUDA error"), False),
    ],
)
def test_a_full_disk_is_known_in_whatever_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, full: bool
) -> None:
    monkeypatch.setattr(errors, "LITTLE_BYTES", 1 << 62)
    assert errors.disk_is_full(error, tmp_path) is full


NESTED = {"gate": {"name": "linear", "scope": "pairwise"}, "oracle": {"kind": "mini"}, "seed": 3}
FLAT = {"name": "linear", "scope": "pairwise", "oracle": {"kind": "mini"}, "seed": 3, "selection": "extremes"}


@pytest.mark.parametrize("identity", [NESTED, FLAT])
def test_a_setting_is_read_by_its_dotted_key_from_nested_and_flat_manifests(identity: dict[str, Any]) -> None:
    made = replace(manifest_of([]), identity=identity)
    assert (made.setting("gate.name"), made.setting("gate.scope")) == ("linear", "pairwise")
    assert made.setting("oracle.kind") == "mini" and made.setting("oracle") == {"kind": "mini"}
    assert made.setting("evaluate.seed") == made.setting("seed") == 3
    assert made.setting("gate.floor") is None and made.setting("evaluate.resamples", 2000) == 2000
    assert made.setting("selection.by", "none") == identity.get("selection", "none")
