"""Step `prompts` of a suite: every row of a file is a prompt, in the file's order; none is held out or trained on.

All rows are part 0, where the step `sample` finds held-out prompts. Dropped, and counted: `duplicate` (the response
to the first of equal prompts counts for all), `too_long`. A row without text stops it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from sparring.stages.errors import DataError
from sparring.stages.sample.config import SuitePromptsSettings
from sparring.stages.sample.messages import Message, messages
from sparring.stages.sample.prompts import PROMPTS_SCHEMA, prompt_hash
from sparring.stages.sample.source import header, rows
from sparring.stages.step import Job, Part, Shard

COLUMNS = ("instruction", "prompt", "question", "turns", "messages")
"""Columns that hold prompts; the first that a file has is read."""


class SuiteRow(NamedTuple):
    """One row of a suite's file."""

    where: str
    """`row 17`."""
    id: str
    """That of its prompt."""
    messages: list[Message]
    values: Mapping[str, Any]
    """All columns; of parquet those that are read."""


def column_of(path: Path, given: str | None = None) -> str:
    """Return the column that holds the prompts; DataError names the columns of the file."""
    names = header(path)
    if not names:
        raise DataError(f"{path}: holds no rows; give a file with at least one.")
    for name in (given,) if given else COLUMNS:
        if name in names:
            return name
    wanted = given or ", ".join(COLUMNS[:-1]) + f" or {COLUMNS[-1]}"
    raise DataError(f"{path}: no column {wanted}; there are: {', '.join(names) or 'none'}.")


def read(path: Path, column: str) -> Iterator[SuiteRow]:
    """Yield all rows; DataError names the first that is wrong."""
    none = True
    for where, values in rows(path, [column, "dataset"]):
        none, place = False, f"{path}: {where}"
        if column not in values:
            raise DataError(f"{place}: no {column}; there are: {', '.join(values) or 'none'}; mend the row.")
        try:
            turns = messages(values[column])
        except ValueError as error:
            raise DataError(f"{place}: {column} {error}; mend or remove the row.") from None
        yield SuiteRow(where, prompt_hash(turns, place)[:16], turns, values)
    if none:
        raise DataError(f"{path}: holds no rows; give a file with at least one.")


def shards(job: Job) -> list[Shard]:
    """Return one shard: all rows."""
    return [Shard(index=0)]


class SuiteRenderer:
    """Renders the rows."""

    def __init__(self, job: Job[SuitePromptsSettings]) -> None:
        from sparring.stages.chat import load_chat

        self.chat = load_chat(job.inputs["policy"].folder())
        source = job.inputs["source"]
        self.path, self.settings = source.folder() / source.files[0].path, job.settings

    def __call__(self, shard: Shard) -> Part:
        kept: dict[str, dict[str, Any]] = {}
        dropped: dict[str, int] = {}
        seen: set[str] = set()
        total = 0
        for row in read(self.path, self.settings.column):
            total += 1
            ids: list[int] = []
            if row.id not in seen:
                try:
                    ids = self.chat.render(row.messages)
                except DataError as error:
                    raise DataError(f"{self.path}: {row.where}: {error}") from None
            reason = "duplicate" if row.id in seen else "too_long" if len(ids) > self.settings.max_tokens else ""
            seen.add(row.id)
            if reason:
                dropped[reason] = dropped.get(reason, 0) + 1
            else:
                kept[row.id] = {"id": row.id, "messages": row.messages, "prompt_ids": ids}
        if not kept:
            raise DataError(
                f"{self.path}: all {total} rows are longer than prompts.max_tokens={self.settings.max_tokens} "
                "tokens; raise prompts.max_tokens."
            )
        table = pa.Table.from_pylist(list(kept.values()), schema=PROMPTS_SCHEMA)
        tokens = sum(len(one["prompt_ids"]) for one in kept.values())
        return Part(table=table, rows_in=total, dropped=dropped, stats={"prompt_tokens": float(tokens)})
