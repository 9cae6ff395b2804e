"""Artifacts for tests: tables and folders as verified inputs, and a step run without the orchestrator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparring.stages.sample.stage import SAMPLES_SCHEMA
from sparring.stages.step import File, Input, Job, Part, Shard, StepSpec, sha256_file


def as_input(role: str, folder: Path, tables: Sequence[pa.Table], summary: dict[str, Any] | None = None) -> Input:
    """Write `tables` as the parquet parts of an artifact under `folder` and open it as the input `role`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, table in enumerate(tables):
        name, path = f"part-{index:05d}.parquet", folder / f"part-{index:05d}.test.parquet"
        pq.write_table(table, path)
        files.append(_file(name, path, folder))
    return Input(role=role, root=folder, digest="0" * 64, files=tuple(files), summary=summary or {})


def folder_input(role: str, folder: Path) -> Input:
    """Open an external folder (a model, an encoder, a judge) as the input `role`."""
    files = [_file(str(p.relative_to(folder)), p, folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    return Input(role=role, root=folder, digest="0" * 64, files=tuple(files))


def as_job(spec: StepSpec, settings: Any, inputs: Sequence[Input], folder: Path) -> Job:
    """A job of `spec` on `inputs`, on the CPU."""
    return Job(
        spec=spec,
        fingerprint="0" * 64,
        settings=settings,
        inputs={source.role: source for source in inputs},
        out=folder / "out",
        attempt="test",
        scratch=folder / "scratch",
    )


def run_step(
    job: Job,
    worker: Callable[[Shard], Part],
    shards: Callable[[Job], list[Shard]],
    finish: Callable[..., dict[str, Any]],
) -> tuple[list[pa.Table], list[Part], dict[str, Any]]:
    """Run every shard and the summary of a step, as the orchestrator does: tables, parts, summary."""
    parts = [worker(shard) for shard in shards(job)]
    for part in parts:
        assert part.rows_in == part.table.num_rows + sum(part.dropped.values())
    records = [
        {
            "rows_in": part.rows_in,
            "rows_out": part.table.num_rows,
            "dropped": part.dropped,
            "stats": part.stats,
            "seconds": 1.0,
        }
        for part in parts
    ]
    tables = [part.table for part in parts]
    return tables, parts, finish(job, iter(tables), records)


def samples_table(prompts: Mapping[str, Sequence[str]], capped: Sequence[tuple[str, int]] = ()) -> pa.Table:
    """A samples table from {id: response texts}; the prompt of `x` is "Say x."; one token per character.

    `capped` names the (id, index) of responses that hit max_tokens.
    """
    rows = [
        {
            "id": row_id,
            "messages": [{"role": "user", "content": f"Say {row_id}."}],
            "prompt_ids": [1, 2, 3],
            "responses": [
                {
                    "text": text,
                    "ids": list(range(len(text))),
                    "finish": "length" if (row_id, index) in capped else "stop",
                    "seed": index,
                }
                for index, text in enumerate(texts)
            ],
        }
        for row_id, texts in prompts.items()
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA)


def _file(name: str, path: Path, root: Path) -> File:
    return File(name=name, path=str(path.relative_to(root)), sha256=sha256_file(path), bytes=path.stat().st_size)
