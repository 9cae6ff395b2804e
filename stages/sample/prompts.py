"""Step `prompts`: read files of prompts, check them, split off the held-out ones, render and tokenize the rest.

Part 0 is the held-out prompts, parts 1.. the training prompts in the order of the sources, `PART_ROWS` a part. A row is
usable when it has text, is no duplicate of an earlier one and its rendered prompt fits; the first `limit + heldout`
usable rows are taken (all without a limit), and of these the `heldout` with the smallest sha256 are held out: the same
ones whatever the order of the files. Dropped rows are counted in part 1. Where there are several sources, one a slice,
the summary says how many training prompts each has left.

Left out: merging of near duplicates.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from sparring.stages.errors import DataError
from sparring.stages.sample.config import PromptsSettings
from sparring.stages.sample.layouts import Row, read
from sparring.stages.sample.messages import Message
from sparring.stages.step import Input, Job, Part, Shard

PART_ROWS = 4096
NEAR_EMPTY = "near_empty"
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PROMPTS_SCHEMA = pa.schema([("id", pa.string()), ("messages", MESSAGES), ("prompt_ids", pa.list_(pa.int32()))])


class Count(NamedTuple):
    """What files of prompts hold, as far as it can be known without a policy's tokenizer."""

    different: int
    dropped: dict[str, int]
    """Rows that are left out."""


def count(sources: Sequence[Source], column: str, on_empty: str = "refuse") -> Count:
    """Read all files, DataError at the first thing wrong. No model."""
    seen: set[str] = set()
    rows = Counter[str]()
    for one in _keyed(sources, column, on_empty):
        rows["rows" if one.row else one.key] += 1
        if one.row:
            seen.add(one.key)
    rows["duplicate"] = rows.pop("rows", 0) - len(seen)
    return Count(len(seen), {reason: number for reason, number in rows.items() if number})


def check_lengths(sources: Sequence[Source], settings: PromptsSettings, encode: Callable[[str], int]) -> None:
    """DataError where fewer prompts fit than are held out, as far as their own text says; reads until enough do.

    encode: text -> its tokens, at least; what the chat template adds is not counted.
    """
    heldout, max_tokens = settings.prompts.heldout or 0, settings.prompts.max_tokens
    seen: dict[str, int] = {}
    fit = 0
    for one in _keyed(sources, settings.prompts.column, settings.on_empty):
        if one.row and one.key not in seen:
            text = "\n".join(m["content"] for m in one.row.messages)
            seen[one.key] = encode(text) if len(text) > max_tokens else 0
            fit += seen[one.key] <= max_tokens
            if fit > heldout:
                return
    if not fit:
        raise DataError(_all_too_long(sources, len(seen), max_tokens, min(seen.values())))
    raise DataError(too_few(files_named(sources), fit, heldout, {"too_long": len(seen) - fit}))


def sources_of(inputs: Mapping[str, Input]) -> list[Source]:
    """Return the files of the roles `source`, or `source_1` .. `source_n`, in order."""
    roles = sorted((role for role in inputs if role.startswith("source")), key=lambda role: (len(role), role))
    return [
        Source(number, inputs[role].root / file.path)
        for number, role in enumerate(roles)
        for file in inputs[role].files
    ]


def shards(job: Job[PromptsSettings]) -> list[Shard]:
    """Return the held-out part and as many training parts as the rows can fill (drops may leave the last short)."""
    prompts = job.settings.prompts
    heldout, limit, sources = prompts.heldout or 0, prompts.limit, sources_of(job.inputs)
    different, dropped = count(sources, prompts.column, job.settings.on_empty)
    if different <= heldout:
        raise DataError(too_few(files_named(sources), different, heldout, dropped))
    train = different - heldout if limit is None else min(limit, different - heldout)
    return [Shard(index=i, payload={"part": i}) for i in range(1 + -(-train // PART_ROWS))]


class Cleaner:
    """Turns the sources into the rows of one part."""

    def __init__(self, job: Job[PromptsSettings]) -> None:
        self.sources = tuple(sources_of(job.inputs))
        self.settings = job.settings
        self.policy = job.inputs["policy"].folder()
        self.choice = _choice_of(job.inputs, job.settings)

    def __call__(self, shard: Shard) -> Part:
        part = shard.payload["part"]
        chosen = self.choice.heldout if part == 0 else self.choice.train[(part - 1) * PART_ROWS : part * PART_ROWS]
        dropped = self.choice.dropped if part == 1 else {}
        rows, numbers = [], Counter[int]()
        for one in self._chosen(set(chosen)):
            rows.append(one)
            numbers[one.pop("source")] += 1
        table = pa.Table.from_pylist(rows, schema=PROMPTS_SCHEMA)
        tokens = sum(len(row["prompt_ids"]) for row in rows)
        slices = {f"source_{number}": float(count) for number, count in numbers.items() if part}
        return Part(
            table=table,
            rows_in=table.num_rows + sum(dropped.values()),
            dropped=dropped,
            stats={"prompt_tokens": float(tokens), **slices},
        )

    def _chosen(self, numbers: set[int]) -> Iterator[dict[str, Any]]:
        from sparring.stages.chat import load_chat

        chat = load_chat(self.policy)
        for index, one in enumerate(_keyed(self.sources, self.settings.prompts.column, self.settings.on_empty)):
            if index in numbers and one.row:
                messages = one.row.messages
                ids = chat.render(messages)
                yield {"id": one.key[:16], "messages": messages, "prompt_ids": ids, "source": one.source.number}


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
        "slices": [int(sum(part["stats"].get(f"source_{i}", 0) for part in parts)) for i in range(_count(job))],
        "dropped": dropped,
        "prompt_tokens_mean": float(tokens.mean()),
        "prompt_tokens_max": int(tokens.max()),
    }


def _flat(column: pa.ChunkedArray) -> pa.ListArray:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _count(job: Job) -> int:
    return sum(role.startswith("source") for role in job.inputs)


def files_named(sources: Sequence[Source]) -> str:
    """Return the path of the first file, and how many more there are."""
    return f"{sources[0].path}" + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")


@dataclass(frozen=True)
class Source:
    """A file of prompts, and which of the slices it belongs to."""

    number: int
    path: Path


class Keyed(NamedTuple):
    """A row of a source; without `row` it is one to drop for `key`."""

    key: str
    row: Row | None
    source: Source


@dataclass(frozen=True)
class Choice:
    """Which rows of the source are used, by number, in the source's order."""

    heldout: list[int]
    train: list[int]
    dropped: dict[str, int]
    ids: frozenset[str]
    """Of the held-out ones."""


def heldout_ids(inputs: Mapping[str, Input], settings: PromptsSettings) -> frozenset[str]:
    """Return the ids of the prompts that the step holds out, whether it is made or not."""
    return _choice_of(inputs, settings).ids


def _choice_of(inputs: Mapping[str, Input], settings: PromptsSettings) -> Choice:
    digests = tuple(source.digest for role, source in sorted(inputs.items()))
    return _choice(tuple(sources_of(inputs)), digests, inputs["policy"].folder(), settings)


@lru_cache(maxsize=1)
def _choice(sources: tuple[Source, ...], digests: tuple[str, ...], policy: Path, settings: PromptsSettings) -> Choice:
    """Read and render until enough rows are usable. Keeps numbers and keys only; cached for the parts of one source."""
    from sparring.stages.chat import load_chat

    chat, prompts = load_chat(policy), settings.prompts
    heldout, limit, max_tokens = prompts.heldout or 0, prompts.limit, prompts.max_tokens
    usable: list[tuple[str, int]] = []
    seen: set[str] = set()
    dropped = {NEAR_EMPTY: 0, "duplicate": 0, "refused_by_template": 0, "too_long": 0, "over_limit": 0}
    refused: DataError | None = None
    shortest: int | None = None
    for index, one in enumerate(_keyed(sources, prompts.column, settings.on_empty)):
        if one.row is None:
            dropped[one.key] += 1
            continue
        if one.key in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(one.key)
        if limit is not None and len(usable) == limit + heldout:
            dropped["over_limit"] += 1
            continue
        try:
            length = _length(chat, one.row, one.source.path)
        except DataError as error:
            if settings.on_empty == "refuse":
                raise
            refused = error
            dropped["refused_by_template"] += 1
            continue
        shortest = length if shortest is None else min(shortest, length)
        if length > max_tokens:
            dropped["too_long"] += 1
        else:
            usable.append((one.key, index))
    if refused and dropped["refused_by_template"] == len(seen):
        raise refused
    if not usable and seen:
        raise DataError(_all_too_long(sources, len(seen), max_tokens, shortest or 0))
    if len(usable) <= heldout:
        raise DataError(too_few(files_named(sources), len(usable), heldout, dropped))
    held = {index: key[:16] for key, index in sorted(usable)[:heldout]}
    train = [index for _, index in usable if index not in held]
    lost = {reason: number for reason, number in dropped.items() if number}
    return Choice(sorted(held), train, lost, frozenset(held.values()))


def _length(chat: Any, row: Row, path: Path) -> int:
    try:
        return len(chat.render(row.messages))
    except DataError as error:
        raise DataError(f"{path}: {row.where}: {error}") from None


def _all_too_long(sources: Sequence[Source], number: int, max_tokens: int, shortest: int) -> str:
    return (
        f"{files_named(sources)}: all {number} prompts are longer than prompts.max_tokens={max_tokens} tokens "
        f"(the shortest has {shortest}); raise prompts.max_tokens."
    )


def too_few(name: str, usable: int, heldout: int, dropped: Mapping[str, int]) -> str:
    """Say that the usable prompts are not enough to hold some out."""
    lost = ", ".join(f"{number} {reason}" for reason, number in dropped.items() if number)
    return (
        f"{name}: {usable} usable prompts{f' ({lost} dropped)' if lost else ''} are not enough for "
        f"prompts.heldout={heldout} and at least 1 to train on; add prompts or lower prompts.heldout."
    )


def _keyed(sources: Sequence[Source], column: str, on_empty: str) -> Iterator[Keyed]:
    none = True
    for source in sources:
        for row in read(source.path, column, drop_empty=on_empty == "drop"):
            none = False
            if near_empty(row.messages):
                yield Keyed(NEAR_EMPTY, None, source)
            else:
                yield Keyed(prompt_hash(row.messages, f"{source.path}: {row.where}"), row, source)
    if none:
        raise DataError(f"{files_named(sources)}: holds no prompts; give a file with at least one row.")


def near_empty(messages: Sequence[Message]) -> bool:
    """Return whether the user's turns hold fewer than two letters or digits of any script: nothing to respond to."""
    letters = (c for m in messages if m["role"] == "user" for c in m["content"] if c.isalnum())
    return len(list(islice(letters, 2))) < 2


def prompt_hash(messages: Sequence[Message], where: str = "prompt") -> str:
    """Return the sha256 of the messages' roles and texts; its first 16 digits are the prompt's id."""
    text = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False, separators=(",", ":"))
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: holds half a surrogate pair ({text[error.start]!a}), which is no text; mend or remove the row."
        ) from None
