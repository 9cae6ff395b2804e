"""Step `prompts`: read files of prompts, check them, split off the held-out ones, render and tokenize the rest.

Part 0 is the held-out prompts, parts 1.. the training prompts in the order of the sources, `PART_ROWS` a part. A row is
usable when it has text, is no duplicate of an earlier one and its rendered prompt fits; the first `limit + heldout`
usable rows are taken (all without a limit), and of these the `heldout` with the smallest sha256 are held out: the same
ones whatever the order of the files. Dropped rows are counted in part 1. Where there are several sources, one a slice,
the summary has the number of training prompts that each has left.

Left out: merging of near duplicates.
"""

from __future__ import annotations

import hashlib
import heapq
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
import pyarrow.compute as pc

from sparring.stages.errors import DataError
from sparring.stages.sample.config import PromptsSettings
from sparring.stages.sample.layouts import PromptRow, read
from sparring.stages.sample.messages import Message
from sparring.stages.sample.source import ByNumber
from sparring.stages.step import Input, Job, Part, Shard

PART_ROWS = 4096
NEAR_EMPTY = "near_empty"
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PROMPTS_SCHEMA = pa.schema([("id", pa.string()), ("messages", MESSAGES), ("prompt_ids", pa.list_(pa.int32()))])


class PromptCount(NamedTuple):
    """How many prompts files hold, as far as it can be counted without a policy's tokenizer."""

    different: int
    dropped: dict[str, int]
    """Rows that are left out."""


@dataclass(frozen=True)
class Source:
    """A file of prompts, and which of the slices it belongs to."""

    number: int
    path: Path


class Keyed(NamedTuple):
    """A row of a source."""

    key: str
    """prompt_hash of its messages; empty where it has next to no text and is dropped as `near_empty`."""
    row: PromptRow
    source: Source


@dataclass(frozen=True)
class Choice:
    """Which rows of the sources are used, in the sources' order."""

    heldout: list[Keyed]
    train: list[int]
    """Their numbers, of all rows of all sources."""
    dropped: dict[str, int]
    different: int
    """Different prompts, dropped ones included."""


def sources_of(inputs: Mapping[str, Input]) -> list[Source]:
    """Return the files of the roles `source`, or `source_1` .. `source_n`, in order."""
    roles = sorted((role for role in inputs if role.startswith("source")), key=lambda role: (len(role), role))
    return [
        Source(number, inputs[role].root / file.path)
        for number, role in enumerate(roles)
        for file in inputs[role].files
    ]


def count(sources: Sequence[Source], column: str, on_empty: str = "refuse") -> PromptCount:
    """Read all files and count their prompts, without a model; DataError at the first thing wrong."""
    seen: set[str] = set()
    total = empty = 0
    for one in _keyed(sources, column, on_empty):
        total += 1
        if one.key:
            seen.add(one.key)
        else:
            empty += 1
    dropped = {NEAR_EMPTY: empty, "duplicate": total - empty - len(seen)}
    return PromptCount(len(seen), {reason: number for reason, number in dropped.items() if number})


def check_lengths(sources: Sequence[Source], settings: PromptsSettings, encode: Callable[[str], int]) -> None:
    """DataError where so few prompts fit into `max_tokens` that none is left to train on; reads until enough fit.

    encode: text -> a lower bound of its tokens; what the chat template adds is not counted.
    """
    heldout, max_tokens = settings.prompts.heldout or 0, settings.prompts.max_tokens
    seen: dict[str, int] = {}
    fit = 0
    for one in _keyed(sources, settings.prompts.column, settings.on_empty):
        if one.key and one.key not in seen:
            text = "\n".join(m["content"] for m in one.row.messages)
            seen[one.key] = encode(text) if len(text) > max_tokens else 0
            fit += seen[one.key] <= max_tokens
            if fit > heldout:
                return
    if not fit:
        raise DataError(_all_too_long(sources, len(seen), max_tokens, min(seen.values())))
    raise DataError(too_few(files_named(sources), fit, heldout, {"too_long": len(seen) - fit}))


def heldout_ids(inputs: Mapping[str, Input], settings: PromptsSettings) -> frozenset[str]:
    """Return the ids of the prompts that the step holds out, whether its artifact exists or not."""
    return frozenset(one.key[:16] for one in _choice_of(inputs, settings).heldout)


def shards(job: Job[PromptsSettings]) -> list[Shard]:
    """Read and render all rows, then cut those to train on into parts; drops may leave the last ones short.

    The sources are read a first time: what is chosen is in the payloads, the held-out rows themselves, of the others
    their numbers.
    """
    prompts, choice = job.settings.prompts, _choice_of(job.inputs, job.settings)
    train = choice.different - (prompts.heldout or 0)
    if prompts.limit is not None:
        train = min(prompts.limit, train)
    parts = [Shard(index=0, payload={"heldout": choice.heldout, "train": [], "dropped": {}})]
    for first in range(0, train, PART_ROWS):
        numbers, dropped = choice.train[first : first + PART_ROWS], {} if first else choice.dropped
        parts.append(Shard(index=len(parts), payload={"heldout": [], "train": numbers, "dropped": dropped}))
    return parts


class PromptRenderer:
    """Renders the rows of one part after another; the sources are read a second time, on from the last part."""

    def __init__(self, job: Job[PromptsSettings]) -> None:
        from sparring.stages.chat import load_chat

        sources, settings = sources_of(job.inputs), job.settings
        self.chat = load_chat(job.inputs["policy"].folder())
        self.rows = ByNumber(lambda: _keyed(sources, settings.prompts.column, settings.on_empty))

    def __call__(self, shard: Shard) -> Part:
        heldout, dropped = shard.payload["heldout"], shard.payload["dropped"]
        train = [self.rows[number] for number in shard.payload["train"]]
        rows = [
            {"id": one.key[:16], "messages": one.row.messages, "prompt_ids": self.chat.render(one.row.messages)}
            for one in (*heldout, *train)
        ]
        table = pa.Table.from_pylist(rows, schema=PROMPTS_SCHEMA)
        slices = Counter(f"source_{one.source.number}" for one in train)
        return Part(
            table=table,
            rows_in=table.num_rows + sum(dropped.values()),
            dropped=dropped,
            stats={
                "prompt_tokens": float(sum(len(row["prompt_ids"]) for row in rows)),
                **{name: float(number) for name, number in slices.items()},
            },
        )


def finish(job: Job, tables: Iterable[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return counts and lengths: what the sampler needs to deal, and what the report shows."""
    _choice.cache_clear()  # the driver holds no row numbers after the step
    lengths = [pc.list_value_length(table["prompt_ids"]).to_numpy() for table in tables]
    tokens = np.concatenate(lengths)
    dropped = Counter[str]()
    for part in parts:
        dropped.update(part["dropped"])
    sources = sum(role.startswith("source") for role in job.inputs)
    return {
        "heldout": len(lengths[0]),
        "train": len(tokens) - len(lengths[0]),
        "rows": [len(part) for part in lengths],
        "slices": [int(sum(part["stats"].get(f"source_{i}", 0) for part in parts)) for i in range(sources)],
        "dropped": dict(dropped),
        "prompt_tokens_mean": float(tokens.mean()),
        "prompt_tokens_max": int(tokens.max()),
    }


def _choice_of(inputs: Mapping[str, Input], settings: PromptsSettings) -> Choice:
    digests = tuple(source.digest for role, source in sorted(inputs.items()))
    return _choice(tuple(sources_of(inputs)), digests, inputs["policy"].folder(), settings)


@lru_cache(maxsize=1)
def _choice(sources: tuple[Source, ...], digests: tuple[str, ...], policy: Path, settings: PromptsSettings) -> Choice:
    """Read all rows, and render until enough are usable. Keeps numbers, hashes and the held-out rows alone.

    Cached: an import reads which prompts are held out, and makes the step next. DataError where too few prompts are
    usable, and where a row cannot be read, before one that the chat template refuses.
    """
    from sparring.stages.chat import load_chat

    chat, prompts, refuses = load_chat(policy), settings.prompts, settings.on_empty == "refuse"
    heldout, limit, max_tokens = prompts.heldout or 0, prompts.limit, prompts.max_tokens
    usable: list[int] = []
    seen: set[str] = set()
    least: list[tuple[int, int, Keyed]] = []  # a heap of the usable rows with the smallest hashes, the largest first
    dropped = {NEAR_EMPTY: 0, "duplicate": 0, "refused_by_template": 0, "too_long": 0, "over_limit": 0}
    refused: DataError | None = None
    shortest: int | None = None
    for index, one in enumerate(_keyed(sources, prompts.column, settings.on_empty)):
        if not one.key or one.key in seen:
            dropped["duplicate" if one.key else NEAR_EMPTY] += 1
            continue
        seen.add(one.key)
        if limit is not None and len(usable) == limit + heldout:
            dropped["over_limit"] += 1
            continue
        if refused and refuses:
            continue
        try:
            length = len(chat.render(one.row.messages))
        except DataError as error:
            refused = DataError(f"{one.source.path}: {one.row.where}: {error}")
            dropped["refused_by_template"] += 1
            continue
        shortest = length if shortest is None else min(shortest, length)
        if length > max_tokens:
            dropped["too_long"] += 1
            continue
        usable.append(index)
        entry = (-int(one.key, 16), index, one)
        if len(least) < heldout:
            heapq.heappush(least, entry)
        else:
            heapq.heappushpop(least, entry)
    if refused and (refuses or dropped["refused_by_template"] == len(seen)):
        raise refused
    if not usable and seen:
        raise DataError(_all_too_long(sources, len(seen), max_tokens, shortest or 0))
    if len(usable) <= heldout:
        raise DataError(too_few(files_named(sources), len(usable), heldout, dropped))
    held = {index: one for _, index, one in sorted(least, key=lambda entry: entry[1])}
    return Choice(
        heldout=list(held.values()),
        train=[index for index in usable if index not in held],
        dropped={reason: number for reason, number in dropped.items() if number},
        different=len(seen),
    )


def _keyed(sources: Sequence[Source], column: str, on_empty: str) -> Iterator[Keyed]:
    none = True
    for source in sources:
        for row in read(source.path, column, drop_empty=on_empty == "drop"):
            none = False
            place = f"{source.path}: {row.where}"
            yield Keyed("" if near_empty(row.messages) else prompt_hash(row.messages, place), row, source)
    if none:
        raise DataError(f"{files_named(sources)}: holds no prompts; give a file with at least one row.")


def files_named(sources: Sequence[Source]) -> str:
    """Return the path of the first file, and how many more there are."""
    return f"{sources[0].path}" + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")


def _all_too_long(sources: Sequence[Source], number: int, max_tokens: int, shortest: int) -> str:
    return (
        f"{files_named(sources)}: all {number} prompts are longer than prompts.max_tokens={max_tokens} tokens "
        f"(the shortest has {shortest}); raise prompts.max_tokens."
    )


def too_few(name: str, usable: int, heldout: int, dropped: Mapping[str, int]) -> str:
    """Return the message that the usable prompts are not enough to hold some out."""
    lost = ", ".join(f"{number} {reason}" for reason, number in dropped.items() if number)
    return (
        f"{name}: {usable} usable prompts{f' ({lost} dropped)' if lost else ''} are not enough for "
        f"prompts.heldout={heldout} and at least 1 to train on; add prompts or lower prompts.heldout."
    )


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
