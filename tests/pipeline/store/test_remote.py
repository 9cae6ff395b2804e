"""A store in a bucket: the first manifest wins, a node reads a file once, and what fails is tried again for a while."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparring.pipeline import config
from sparring.pipeline.cli import main
from sparring.pipeline.cli.verify import verify
from sparring.pipeline.store import remote
from sparring.pipeline.store.files import external, files_below
from sparring.pipeline.store.manifest import Artifact, Manifest, publish, tidy
from sparring.pipeline.store.parts import finished_parts, write_part
from sparring.pipeline.store.remote import Remote
from sparring.stages.errors import RUN_AGAIN, ConfigError, DataError
from sparring.stages.step import File, Input, Job, Part, Shard, StepSpec
from tests import object_store
from tests.object_store import Server
from tests.refusals import named, refused

FINGERPRINT = "ab" * 32
BUCKET = "store-of-tests"


@pytest.fixture(scope="module")
def moto() -> Iterator[Server]:
    """One server for the tests of this module, and one client, which takes most of a second to make."""
    remote._file_system.cache_clear()
    with object_store.serving() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "TRIES", 4)
        server.make_bucket(BUCKET)
        yield server
    remote._file_system.cache_clear()


@pytest.fixture
def server(moto: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """The server as this process's tools find it, and a node whose cache is empty."""
    object_store.use(monkeypatch, moto)
    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path / "node-1"))
    return moto


@pytest.fixture
def url(server: Server, request: pytest.FixtureRequest) -> str:
    """A store that is empty."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '/').rstrip(']')}"


def _node(monkeypatch: pytest.MonkeyPatch, url: str, folder: Path) -> Remote:
    """The store as another node sees it."""
    monkeypatch.setenv("SPARRING_CACHE", str(folder))
    return remote.connect(url)


def _job(bucket: Remote, attempt: str = "a1", inputs: dict[str, Input] | None = None) -> Job:
    spec = StepSpec(kind="pairs", version=1)
    return Job(
        spec=spec,
        fingerprint=FINGERPRINT,
        settings={},
        inputs=inputs or {},
        out=bucket.folder / "pairs-abababab",
        attempt=attempt,
        scratch=bucket.folder / "logs",
        store=bucket.url,
    )


def _written(job: Job, parts: int = 2) -> list[dict[str, Any]]:
    """The records of shards, each written and uploaded."""
    return [
        write_part(job, Shard(index=i), Part(table=pa.table({"x": [i, i]}), rows_in=2), seconds=1.0)
        for i in range(parts)
    ]


def _manifest(records: list[dict[str, Any]], attempt: str = "a1", content: str = "1") -> Manifest:
    return Manifest(
        fingerprint=FINGERPRINT,
        step="pairs",
        version=1,
        identity={},
        inputs={"rows": {"name": "r", "digest": content}},
        files=tuple(File(**record["file"]) for record in records),
        rows={"in": 4, "out": 4, "dropped": {}},
        summary={},
        seconds=1.0,
        stats={},
        attempts=[attempt],
        made_with={},
    )


def _artifact(bucket: Remote) -> Artifact:
    bucket.refresh()
    return Artifact(bucket.folder, "pairs", FINGERPRINT)


def _published(bucket: Remote) -> Artifact:
    artifact = _artifact(bucket)
    tidy(artifact, publish(artifact, _manifest(_written(_job(bucket)))))
    return artifact


def test_what_one_node_publishes_another_reads(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _published(remote.connect(url))
    names = {f"part-0000{i}.a1.parquet" for i in range(2)} | {"manifest.json"}
    assert set(remote.connect(url).objects["pairs-abababab"]) == names == {path.name for path in made.path.iterdir()}
    other = _node(monkeypatch, url, tmp_path / "node-2")
    seen = _artifact(other)
    manifest = seen.manifest()
    assert manifest == made.manifest() and manifest and seen.path != made.path and not seen.damage()
    assert [path.name for path in seen.path.iterdir()] == ["manifest.json"]  # files come as they are read
    source: Input = pickle.loads(pickle.dumps(seen.as_input("pairs", manifest)))
    assert source.table(1)["x"].to_pylist() == [1, 1]
    assert {path.name for path in seen.path.iterdir()} == {"manifest.json", "part-00001.a1.parquet"}


def test_of_writers_that_race_one_wins_and_the_others_adopt(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [_node(monkeypatch, url, tmp_path / f"node-{i}") for i in range(6)]
    ready, published = threading.Barrier(len(nodes)), {}
    manifests = [_manifest(_written(_job(node, f"a{i}")), f"a{i}") for i, node in enumerate(nodes)]

    def write(i: int) -> None:
        artifact = _artifact(nodes[i])
        ready.wait()
        published[i] = publish(artifact, manifests[i])

    threads = [threading.Thread(target=write, args=[i]) for i in range(len(nodes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = published[0]
    assert winner in manifests and list(published.values()) == [winner] * len(nodes)
    tidy(_artifact(nodes[0]), winner)
    kept = {f"part-0000{i}.{winner.attempts[0]}.parquet" for i in range(2)} | {"manifest.json"}
    assert set(nodes[0].objects["pairs-abababab"]) - kept == set()


def test_a_stale_manifest_gives_way_to_one_successor(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _published(remote.connect(url))
    nodes = [_node(monkeypatch, url, tmp_path / f"node-{i}") for i in (2, 3)]
    artifacts = [_artifact(node) for node in nodes]
    stale = artifacts[0].raw()
    successors = [_manifest(_written(_job(node, f"b{i}")), f"b{i}", content="2") for i, node in enumerate(nodes)]
    first = publish(artifacts[0], successors[0], stale)
    assert first == successors[0]
    assert publish(artifacts[1], successors[1], stale) == first  # it has not seen that the stale one is gone
    late = _manifest(_written(_job(nodes[1], "c1")), "c1", content="1")
    assert publish(artifacts[1], late) == first


def test_what_a_later_writer_has_begun_is_not_tidied_away(url: str) -> None:
    bucket = remote.connect(url)
    artifact = _published(bucket)
    manifest = artifact.manifest()
    assert manifest
    _written(_job(bucket, "z9"))
    artifact.refresh()
    later = bucket.objects["pairs-abababab"]
    published = later["manifest.json"].modified
    for path in [path for path in later if ".z9." in path]:
        later[path] = replace(later[path], modified=published.replace(year=published.year + 1))
    bucket.tidy("pairs-abababab", {file.path for file in manifest.files})
    artifact.refresh()
    assert sum(".z9." in path for path in bucket.objects["pairs-abababab"]) == 4


@pytest.mark.parametrize("fault", ["slow_down", "broken", "dropped", "lost"])
def test_a_put_whose_fate_is_unknown_is_ours_if_its_bytes_are_there(url: str, server: Server, fault: str) -> None:
    bucket = remote.connect(url)
    with server.failing(lambda number, method: fault if number == 1 else ""):
        assert bucket.create("x/manifest.json", b"ours")
    assert server.failed == {fault: 1}
    with server.failing(lambda number, method: fault if number == 1 else ""):
        assert not bucket.create("x/manifest.json", b"theirs")
    assert bucket.read("x/manifest.json") == b"ours"


def test_a_busy_server_costs_time_and_no_bytes(url: str, server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    """One write in ten fails, one request in seven is refused as too many, one in eleven loses its connection."""
    writes = [0]

    def fault(number: int, method: str) -> str:
        writes[0] += method in object_store.WRITES
        if method in object_store.WRITES and writes[0] % 10 == 0:
            return "broken"
        return "slow_down" if number % 7 == 0 else ("dropped", "lost")[number % 2] if number % 11 == 0 else ""

    bucket = remote.connect(url)
    with server.failing(fault):
        artifact = _artifact(bucket)
        records = _written(_job(bucket), 20)
        manifest = publish(artifact, _manifest(records))
        tidy(artifact, manifest)
        seen = _artifact(_node(monkeypatch, url, tmp_path / "node-2")).as_input("pairs", manifest)
        assert [seen.table(i)["x"].to_pylist() for i in range(20)] == [[i, i] for i in range(20)]
    assert server.failed["broken"] >= 4 and server.failed["slow_down"] >= 9 and "dropped" in server.failed
    assert len(_published_files(bucket)) == 21


def _published_files(bucket: Remote) -> set[str]:
    bucket.refresh("pairs-abababab")
    return set(bucket.objects["pairs-abababab"])


@pytest.mark.parametrize("fault", ["slow_down", "dropped"])
def test_a_server_that_stays_away_is_one_error_and_the_next_run_goes_on(url: str, server: Server, fault: str) -> None:
    bucket = remote.connect(url)
    _written(_job(bucket), 1)
    with server.failing(lambda number, method: fault), refused(DataError, url, RUN_AGAIN):
        _written(_job(bucket, "a2"))
    assert 4 <= server.requests <= 8  # the client beneath repeats what it may on a new connection
    done = finished_parts(_job(bucket, "a3"))
    assert {index: record["attempt"] for index, record in done.items()} == {0: "a1"}


def test_finished_shards_of_other_nodes_are_found(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = remote.connect(url)
    _written(_job(first), 3)
    first.remove("pairs-abababab", ["part-00001.a1.parquet"])
    other = _node(monkeypatch, url, tmp_path / "node-2")
    assert _artifact(other).begun() and _artifact(other).manifest() is None
    assert sorted(finished_parts(_job(other))) == [0, 2]
    assert sorted(finished_parts(_job(first))) == [0, 1, 2]  # its own copy is uploaded when the step is published


def test_a_file_is_downloaded_once_a_node_and_checked(
    url: str, server: Server, tmp_path: Path, monkeypatch: Any
) -> None:
    manifest = _published(remote.connect(url)).manifest()
    assert manifest
    bucket = _node(monkeypatch, url, tmp_path / "node-2")
    artifact = _artifact(bucket)
    source, file = artifact.as_input("pairs", manifest), manifest.files[0]
    with server.failing(object_store.none):
        threads = [threading.Thread(target=source.file, args=[file.name]) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert server.requests == 1
    (artifact.path / file.path).write_bytes(b"rotten")  # the disk's fault: the bucket has it whole
    assert source.table(0)["x"].to_pylist() == [0, 0]
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    bucket._call("put_object", Key=bucket._key(f"pairs-abababab/{file.path}"), Body=b"x" * file.bytes)
    (artifact.path / file.path).unlink()
    with refused(DataError, url, file.path, "sha256"):
        source.table(0)
    assert not (artifact.path / file.path).exists()
    bucket.remove("pairs-abababab", [file.path])
    with refused(DataError, url, file.path, "missing"):
        source.table(0)


def test_a_disk_that_is_full_is_not_taken_for_the_network(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = _published(remote.connect(url)).manifest()
    assert manifest
    source = _artifact(_node(monkeypatch, url, tmp_path / "node-2")).as_input("pairs", manifest)

    def full(key: str, path: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote._file_system(os.getpid()), "get_file", full)
    with refused(DataError, str(tmp_path / "node-2"), "disk"):
        source.table(0)


def test_verify_undoes_what_the_bucket_has_lost(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = remote.connect(url)
    artifact = _published(bucket)
    assert verify(url) == 0
    bucket._call("put_object", Key=bucket._key("pairs-abababab/part-00001.a1.parquet"), Body=b"other bytes")
    artifact.refresh()
    assert "part-00001.a1.parquet has 11 bytes" in artifact.damage()
    assert verify(url) == 2
    assert "undone" in capsys.readouterr().out
    assert not _published_files(bucket) and not artifact.path.exists() and _artifact(bucket).manifest() is None
    _written(_job(bucket))
    assert verify(url) == 0
    bucket.remove("pairs-abababab", ["part-00001.a1.parquet"])
    (bucket.folder / "pairs-abababab" / "part-00001.a1.parquet").unlink()
    assert verify(url) == 2
    assert "part-00001.a1.json" in capsys.readouterr().out


def test_a_model_of_the_drivers_disk_reaches_the_other_nodes(
    url: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "policy"
    (folder / "below").mkdir(parents=True)
    for name in ("config.json", "below/model.safetensors"):
        (folder / name).write_text(name * 9)
    driver = remote.connect(url)
    artifact = _published(driver)
    manifest = artifact.manifest()
    assert manifest
    policy = external("policy", folder)
    remote.share(driver, policy)
    with server.failing(object_store.none):
        remote.share(driver, policy)
    assert server.requests == 0
    job = _job(driver, inputs={"policy": policy, "pairs": artifact.as_input("pairs", manifest)})
    here = remote.localised(job)
    assert here.inputs["policy"] == policy and here.out == job.out  # what is there is not downloaded
    other = _node(monkeypatch, url, tmp_path / "node-2")
    folder.rename(tmp_path / "not-on-this-node")
    there = remote.localised(pickle.loads(pickle.dumps(job)))
    assert remote.localised(there) == there and there.out == other.folder / job.out.name
    place = there.inputs["policy"].folder()
    assert place.is_relative_to(tmp_path / "node-2")
    assert (place / "below/model.safetensors").read_text() == "below/model.safetensors" * 9
    assert there.inputs["pairs"].root.is_relative_to(tmp_path / "node-2")
    assert there.inputs["pairs"].table(0)["x"].to_pylist() == [0, 0]


@pytest.mark.slow
def test_a_large_file_passes_in_parts(
    url: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(os.urandom(2**20) * 101)  # from 100 MiB on
    (file,) = files_below(tmp_path, {"weights": weights})
    bucket = remote.connect(url)
    with server.failing(lambda number, method: "broken" if number % 4 == 3 else ""):
        bucket.upload("train-abababab", tmp_path, [file])
        bucket.refresh("train-abababab")
        bucket.pull("train-abababab", tmp_path / "copy", file)
    assert server.failed["broken"] >= 1
    assert (tmp_path / "copy").read_bytes() == weights.read_bytes()


# What is refused before anything is made


@pytest.mark.parametrize(
    "place",
    [
        "gs://bucket/store",
        "s3://KEY:hunter2@bucket/store",
        "s3://bucket/a?b=hunter2",
        "s3://",
        "s3://b//a",
        "s3://b/../a",
    ],
)
def test_only_buckets_of_s3_are_stores(place: str) -> None:
    with refused(ConfigError, "paths.store", "s3://bucket/prefix") as caught:
        config.load([f"paths.store='{place}'"])
    assert "hunter2" not in str(caught.value)


def test_the_address_is_kept(tmp_path: Path) -> None:
    assert config.load(["paths.store=s3://bucket/runs/of.mine/"]).paths.store == "s3://bucket/runs/of.mine"


def test_without_the_package_the_extra_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "find_spec", lambda name: None)
    with refused(ConfigError, "paths.store", "sparring[s3]"):
        remote.opened(url)


def test_a_bucket_that_is_not_there_is_refused_at_plan(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "hardware=cpu", "paths.store=s3://no-such-bucket/a"]) == 2
    named(capsys.readouterr().err, "error: paths.store=s3://no-such-bucket/a", "bucket")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node-1"]


def test_credentials_that_are_missing_or_refused(url: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with server.failing(lambda number, method: "denied"), refused(ConfigError, url, "AccessDenied") as caught:
        remote.opened(url)
    assert server.requests == 1
    for name in object_store.SECRETS:
        assert os.environ[name] not in str(caught.value)
        monkeypatch.delenv(name)
    remote._file_system.cache_clear()
    with refused(ConfigError, url, "AWS_ACCESS_KEY_ID"):
        remote.opened(url)
    remote._file_system.cache_clear()


def test_a_server_without_conditional_puts_is_refused(url: str, server: Server) -> None:
    remote.connect(url).check_conditional()
    remote.connect(url).check_conditional()
    with server.failing(lambda number, method: "unconditional"), refused(ConfigError, url, "If-None-Match"):
        remote.connect(url).check_conditional()
