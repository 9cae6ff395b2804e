"""A step that does nothing, for benchmarks.scale: a STAND-IN for any step on actors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sparring.stages.step import Job, Part, Shard, StepSpec

NOTHING = StepSpec(
    kind="score",
    version=1,
    worker="benchmarks._scale_standin:Nothing",
    shards="benchmarks._scale_standin:shards",
    finish="benchmarks._scale_standin:finish",
    pool="annotators",
)
TABLE = pa.table({"id": ["nothing"]})


@dataclass(frozen=True, kw_only=True)
class NothingSettings:
    """Settings of the step."""

    shards: int


class Nothing:
    """Makes a table of one row of every shard."""

    def __init__(self, job: Job[NothingSettings]) -> None:
        pass

    def __call__(self, shard: Shard) -> Part:
        return Part(table=TABLE, rows_in=1, stats={"tokens": 1.0})


def shards(job: Job[NothingSettings]) -> list[Shard]:
    """Return as many shards as the settings say."""
    return [Shard(index=index) for index in range(job.settings.shards)]


def finish(job: Job[NothingSettings], tables: Iterator[pa.Table], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the number of records."""
    return {"records": len(records)}
