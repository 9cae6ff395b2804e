"""Step `prompts`: read a file of prompts, check it, split off the held-out ones, render and tokenize the rest.

Part 0 is the held-out prompts, parts 1.. the training prompts in the order of the source, `PART_ROWS` a part. A row is
usable when it is no duplicate of an earlier one and its rendered prompt fits; the first `limit + heldout` usable rows
are taken (all without a limit), and of these the `heldout` with the smallest sha256 are held out: the same ones
whatever the order of the file. Dropped rows are counted in part 1.

Left out: compression, .json files, merging of near duplicates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import DataError
from pipeline.job import Job, Part, Shard
from stages.sample.source import Message, Row, read

PART_ROWS = 4096
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PROMPTS_SCHEMA = pa.schema([("id", pa.string()), ("messages", MESSAGES), ("prompt_ids", pa.list_(pa.int32()))])


def check_source(path: Path, column: str) -> int:
    """Read the whole file, DataError at the first thing wrong; return the number of different prompts. No model."""
    return len({key for key, _ in _keyed(path, column)})


def shards(job: Job) -> list[Shard]:
    """Return the held-out part and as many training parts as the rows can fill (drops may leave the last short)."""
    heldout, limit = job.identity["heldout"], job.identity["limit"]
    path = _source(job)
    different = check_source(path, job.identity["column"])
    if different <= heldout:
        raise DataError(_too_few(path, different, heldout, {}))
    train = different - heldout if limit is None else min(limit, different - heldout)
    return [Shard(index=i, payload={"part": i}) for i in range(1 + -(-train // PART_ROWS))]


class Cleaner:
    """Turns the source into the rows of one part."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.path = _source(job)
        self.policy = job.inputs["policy"].folder()
        self.choice = _choice(
            self.path,
            job.inputs["source"].digest,
            self.policy,
            job.identity["column"],
            job.identity["heldout"],
            job.identity["limit"],
            job.identity["max_tokens"],
        )

    def __call__(self, shard: Shard) -> Part:
        part = shard.payload["part"]
        chosen = self.choice.heldout if part == 0 else self.choice.train[(part - 1) * PART_ROWS : part * PART_ROWS]
        dropped = self.choice.dropped if part == 1 else {}
        table = pa.Table.from_pylist(list(self._rows(set(chosen))), schema=PROMPTS_SCHEMA)
        tokens = sum(len(ids) for ids in table["prompt_ids"].to_pylist())
        return Part(
            table=table,
            rows_in=table.num_rows + sum(dropped.values()),
            dropped=dropped,
            stats={"prompt_tokens": float(tokens)},
        )

    def _rows(self, chosen: set[int]) -> Iterator[dict[str, Any]]:
        from stages.sample.chat import load_chat

        chat = load_chat(self.policy)
        for index, (key, row) in enumerate(_keyed(self.path, self.job.identity["column"])):
            if index in chosen:
                yield {"id": key[:16], "messages": row.messages, "prompt_ids": chat.render(row.messages)}


def finish(job: Job, tables: Iterable[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return counts and lengths: what the sampler needs to deal, and what the report shows."""
    lengths = [np.diff(_flat(table["prompt_ids"]).offsets.to_numpy()) for table in tables]
    tokens = np.concatenate(lengths)
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, count in part["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count
    return {
        "heldout": len(lengths[0]),
        "train": len(tokens) - len(lengths[0]),
        "rows": [len(part) for part in lengths],
        "dropped": dropped,
        "prompt_tokens_mean": float(tokens.mean()),
        "prompt_tokens_max": int(tokens.max()),
    }


def _flat(column: pa.ChunkedArray) -> pa.ListArray:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _source(job: Job) -> Path:
    source = job.inputs["source"]
    return source.folder() / source.files[0].path


@dataclass(frozen=True)
class Choice:
    """Which rows of the source are used, by number, in the source's order."""

    heldout: list[int]
    train: list[int]
    dropped: dict[str, int]


@lru_cache(maxsize=1)
def _choice(
    path: Path, digest: str, policy: Path, column: str, heldout: int, limit: int | None, max_tokens: int
) -> Choice:
    """Read and render until enough rows are usable. Keeps numbers and keys only; cached for the parts of one source."""
    from stages.sample.chat import load_chat

    chat = load_chat(policy)
    usable: list[tuple[str, int]] = []
    seen: set[str] = set()
    dropped = {"duplicate": 0, "too_long": 0, "over_limit": 0}
    shortest: int | None = None
    for index, (key, row) in enumerate(_keyed(path, column)):
        if key in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(key)
        if limit is not None and len(usable) == limit + heldout:
            dropped["over_limit"] += 1
            continue
        length = _length(chat, row, path)
        shortest = length if shortest is None else min(shortest, length)
        if length > max_tokens:
            dropped["too_long"] += 1
        else:
            usable.append((key, index))
    if not usable:
        raise DataError(
            f"{path}: all {len(seen)} prompts are longer than prompts.max_tokens={max_tokens} tokens "
            f"(the shortest has {shortest}); raise prompts.max_tokens."
        )
    if len(usable) <= heldout:
        raise DataError(_too_few(path, len(usable), heldout, dropped))
    held = {index for _, index in sorted(usable)[:heldout]}
    train = [index for _, index in usable if index not in held]
    return Choice(sorted(held), train, {reason: count for reason, count in dropped.items() if count})


def _length(chat: Any, row: Row, path: Path) -> int:
    try:
        return len(chat.render(row.messages))
    except DataError as error:
        raise DataError(f"{path}: {row.where}: {error}") from None


def _too_few(path: Path, usable: int, heldout: int, dropped: dict[str, int]) -> str:
    lost = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return (
        f"{path}: {usable} usable prompts{f' ({lost} dropped)' if lost else ''} are not enough for "
        f"prompts.heldout={heldout} and at least 1 to train on; add prompts or lower prompts.heldout."
    )


def _keyed(path: Path, column: str) -> Iterator[tuple[str, Row]]:
    for row in read(path, column):
        yield prompt_hash(row.messages, f"{path}: {row.where}"), row


def prompt_hash(messages: Sequence[Message], where: str = "prompt") -> str:
    """Return the sha256 of the messages' roles and texts; its first 16 digits are the prompt's id."""
    text = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False, separators=(",", ":"))
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: holds half a surrogate pair ({text[error.start]!a}), which is no text; mend or remove the row."
        ) from None
