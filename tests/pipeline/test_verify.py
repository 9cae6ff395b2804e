"""`sparring verify` looks at what is not finished too: shards and checkpoints that the next run would go on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.store.parts import write_part
from sparring.stages.sample.config import SAMPLE
from sparring.stages.step import Part, Shard
from sparring.stages.train.config import TRAIN
from sparring.stages.train.files import checkpoint
from tests.artifacts import as_job
from tests.refusals import named


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A sampling of two shards and a training of two checkpoints, neither of them finished."""
    sample = replace(as_job(SAMPLE, {}, [], tmp_path), out=tmp_path / "store/sample-00000000")
    for index in range(2):
        write_part(sample, Shard(index=index), Part(table=pa.table({"id": ["a"]}), rows_in=1), 1.0)
    train = replace(as_job(TRAIN, {}, [], tmp_path), out=tmp_path / "store/train-00000000")
    for step in (2, 4):
        folder = checkpoint.staged(train, step)
        folder.mkdir(parents=True)
        (folder / "weights.pt").write_bytes(b"weights")
        checkpoint.seal(folder, step, checkpoint.binding(train))
    checkpoint.staged(train, 6).mkdir()
    return tmp_path / "store"


def test_what_is_whole_is_counted(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--store", str(store)]) == 0
    shown = capsys.readouterr().out
    assert "sample-00000000: not finished; 2 shards and 0 checkpoints, 0 corrupt" in shown
    assert "train-00000000: not finished; 0 shards and 3 checkpoints, 0 corrupt" in shown


def test_a_folder_that_is_no_store_is_none_that_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["verify", "--store", str(tmp_path)]) == 2
    named(capsys.readouterr().err, f"error: --store {tmp_path}: ", "paths.store")


@pytest.mark.parametrize("damaged", ["part-00001.test.parquet", "weights.pt", checkpoint.MARKER])
def test_what_is_damaged_is_named(store: Path, capsys: pytest.CaptureFixture[str], damaged: str) -> None:
    path = max(store.rglob(damaged))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert main(["verify", "--store", str(store)]) == 2
    shown = capsys.readouterr().out
    assert damaged in shown and "1 corrupt" in shown.splitlines()[-1]
    assert path.exists()
