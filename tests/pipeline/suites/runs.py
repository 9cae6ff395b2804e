"""A run with a trained policy, made without training: its record, and what its iteration leaves in the store."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparring.pipeline.planning import iteration
from sparring.pipeline.runs import run_record
from sparring.pipeline.store.files import files_below
from sparring.pipeline.store.manifest import Artifact, Manifest, publish
from sparring.pipeline.suites import answer
from tests.faults.harness import overrides, write_prompts
from tests.pipeline.plans import in_process

MADE: dict[str, Any] = {
    "version": 1,
    "identity": {},
    "inputs": {},
    "rows": {"in": 0, "out": 0, "dropped": {}},
    "summary": {},
    "seconds": 1.0,
    "stats": {},
    "attempts": ["test"],
    "made_with": {},
}


SAMPLING = ["sampler=transformers", "sampler.k=2", "sampler.max_tokens=8", "sampler.shard_rows=4"]


def answer_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every step of `sparring answer` here, without Ray."""
    monkeypatch.setattr(answer, "build_answers", lambda *given: in_process(iteration.build_answers(*given)))


def begin(folder: Path, policy: Path, *more: str) -> list[str]:
    """Write the record of the run `default`; return its overrides."""
    write_prompts(folder / "prompts.jsonl")
    words = overrides(folder, policy, *more)
    run_record.begin(folder / "runs" / "default", {}, "", words, str(folder / "store"), {})
    return words


def train(folder: Path, iteration: int, policy: Path) -> Manifest:
    """Note `policy` as what the training of an iteration made."""
    artifact = Artifact(folder / "store", "train", str(iteration) * 64)
    shutil.copytree(policy, artifact.path / "model.test")
    names = {f"model/{path.name}": path for path in sorted((artifact.path / "model.test").iterdir())}
    return _publish(folder, artifact, names, (iteration, "train"))


def write(folder: Path, key: tuple[int, str], tables: Sequence[pa.Table]) -> Manifest:
    """Note tables as the artifact of the step `key`, its kind the label."""
    artifact = Artifact(folder / "store", key[1], f"{key[0]}{len(key[1])}" * 32)
    artifact.path.mkdir(parents=True)
    names = {}
    for index, table in enumerate(tables):
        path = artifact.path / f"part-{index:05d}.test.parquet"
        pq.write_table(table, path)
        names[f"part-{index:05d}.parquet"] = path
    return _publish(folder, artifact, names, key)


def _publish(folder: Path, artifact: Artifact, names: Mapping[str, Path], key: tuple[int, str]) -> Manifest:
    files = files_below(artifact.path, dict(names))
    manifest = Manifest(fingerprint=artifact.fingerprint, step=artifact.kind, files=files, **MADE)
    standing = publish(artifact, manifest)
    run_record.note(folder / "runs" / "default", folder / "store", key, artifact.path.name, standing)
    return standing
