"""Step `sample`, imported: the prompts and responses of a file become samples, as if the policy had given them.

A row is usable when its prompt has text, is no duplicate of an earlier one, is not held out and fits once rendered;
the others are dropped, and counted in part 0. All of the file is read and rendered before the first part is written.
What a file has on its responses (layouts.py) is one more column of the samples, `preference`, for the step `pairs`.

Left out: a second pair of the same prompt, a file in which some responses were cut and some ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparring.stages.annotate.imported import no_pair, win_rates
from sparring.stages.errors import DataError
from sparring.stages.fields import MOST_RESPONSES
from sparring.stages.sample.config import PAIRED, ImportSettings
from sparring.stages.sample.diversity import diversity
from sparring.stages.sample.layouts import EmptyResponse, Entry, Layout, parse
from sparring.stages.sample.messages import Empty, Message
from sparring.stages.sample.prompts import NEAR_EMPTY, near_empty, prompt_hash
from sparring.stages.sample.source import ByNumber, placed
from sparring.stages.sample.stage import SAMPLES_SCHEMA
from sparring.stages.sample.stage import finish as summarise
from sparring.stages.step import Input, Job, Part, Shard

if TYPE_CHECKING:
    from sparring.stages.chat import Chat

MEND = "mend or remove the row."
REMEDIES = {
    NEAR_EMPTY: "give prompts with text",
    "empty_response": "give responses with text",
    "duplicate": "give different prompts",
    "heldout": "give other prompts than those of prompts.*, or lower prompts.heldout",
    "too_long": "raise prompts.max_tokens",
    "identical": "give pairs whose responses differ",
    "tie": "give pairs of which one response is better",
}
"""Why a row is dropped -> what to do where all are."""
PREFERENCE = pa.struct(
    [
        ("P", pa.list_(pa.float64())),
        ("win_rates", pa.list_(pa.float64())),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
    ]
)
PAIRED_SCHEMA = SAMPLES_SCHEMA.append(pa.field("preference", PREFERENCE))


def check(
    paths: Sequence[Path],
    settings: ImportSettings,
    heldout: frozenset[str] = frozenset(),
    chat: Chat | None = None,
) -> None:
    """Read all rows, DataError at the first thing wrong, or where none of them can be used. Renders until one fits."""
    dropped, total, fits = Counter[str](), 0, False
    for place, entry, reason in _rows_with_reason(paths, settings, heldout):
        total += 1
        if entry and not reason and (given := entry.preference):
            rates = win_rates(np.array(given.P).reshape(len(entry.texts), -1), given.win_rates)
            reason = no_pair(rates, (given.chosen, given.rejected), entry.texts)
        if entry and not reason and not fits:
            fits = chat is None or _length(chat, entry.prompt, place) <= settings.max_tokens
            reason = "" if fits else "too_long"
        dropped[reason] += 1
    _check_any_usable(paths[0], total, dropped if not fits else {"": 1})


def _rows_with_reason(
    paths: Sequence[Path], settings: ImportSettings, heldout: frozenset[str]
) -> Iterator[tuple[str, Entry | None, str]]:
    """Yield the place of every row, its entry, and the reason why it is dropped ('': it is used)."""
    seen: set[str] = set()
    k = 0
    for place, values in placed(paths, settings.columns):
        entry = _entry(place, values, settings)
        if isinstance(entry, str):
            yield place, None, entry
            continue
        own = len(entry.texts)
        if not 2 <= own <= MOST_RESPONSES:
            raise DataError(f"{place}: has {own} responses, not 2 (for a preference) to {MOST_RESPONSES}; {MEND}")
        if k not in (0, own):
            raise DataError(f"{place}: has {own} responses, the rows before it {k}; {MEND}")
        k = own
        key = prompt_hash(entry.prompt, place)[:16]
        yield place, entry, "duplicate" if key in seen else "heldout" if key in heldout else ""
        seen.add(key)


def _entry(place: str, values: Mapping[str, Any], settings: ImportSettings) -> Entry | str:
    """Return a row, or why it is dropped; DataError when it is wrong."""
    try:
        entry = parse(values, Layout(settings.layout, settings.prompt, settings.columns))
    except Empty:
        return NEAR_EMPTY
    except EmptyResponse as error:
        if settings.on_empty == "drop":
            return "empty_response"
        raise DataError(f"{place}: {error}; {MEND[:-1]}, or drop such rows with --drop-empty.") from None
    except ValueError as error:
        raise DataError(f"{place}: {error}; {MEND}") from None
    return NEAR_EMPTY if near_empty(entry.prompt) else entry


def _length(chat: Chat, prompt: Sequence[Message], place: str) -> int:
    try:
        return len(chat.render(prompt))
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _check_any_usable(path: Path, total: int, dropped: Mapping[str, int]) -> None:
    """DataError with counts and the remedy where no row can be used. dropped: reason -> rows; '': used ones."""
    if not total:
        raise DataError(f"{path}: holds no rows; give a file with at least one.")
    lost = {reason: dropped[reason] for reason in REMEDIES if dropped.get(reason)}
    if not dropped.get(""):
        counts = ", ".join(f"{reason} {number}" for reason, number in lost.items())
        most = max(lost, key=lambda reason: lost[reason] if reason != "duplicate" else 0)
        raise DataError(f"{path}: none of its {total} rows can be used ({counts}); {REMEDIES[most]}.")


def shards(job: Job[ImportSettings]) -> list[Shard]:
    """Read, check and render all of the file, then cut the usable rows into parts of `shard_rows`."""
    from sparring.stages.chat import load_chat

    settings, paths, chat = job.settings, paths_of(job.inputs["source"]), load_chat(job.inputs["policy"].folder())
    heldout = frozenset(job.inputs["prompts"].table(0, ["id"])["id"].to_pylist())
    kept: list[int] = []
    reasons, total = Counter[str](), 0
    for place, entry, reason in _rows_with_reason(paths, settings, heldout):
        if entry and not reason and _length(chat, entry.prompt, place) > settings.max_tokens:
            reason = "too_long"
        reasons[reason] += 1
        if not reason:
            kept.append(total)
        total += 1
    _check_any_usable(paths[0], total, reasons)
    dropped = {reason: reasons[reason] for reason in REMEDIES if reasons[reason]}
    return [
        Shard(index=i, payload={"rows": kept[a : a + settings.shard_rows], "dropped": {} if i else dropped})
        for i, a in enumerate(range(0, len(kept), settings.shard_rows))
    ]


class Importer:
    """Turns rows of the file into samples."""

    def __init__(self, job: Job[ImportSettings]) -> None:
        from sparring.stages.chat import load_chat

        settings, policy, paths = job.settings, job.inputs["policy"], paths_of(job.inputs["source"])
        self.chat = load_chat(policy.folder())
        self.layout = Layout(settings.layout, settings.prompt, settings.columns)
        self.finish: str = "length" if settings.cut else "stop"
        self.end: list[int] = []
        if not settings.cut:
            end = self.chat.end_of_turn()
            end = self.chat.tokenizer.eos_token_id if end is None else end
            if end is None:
                raise DataError(
                    f"{policy.root}: no token ends a turn of this policy; --cut imports responses without one."
                )
            self.end = [int(end)]
        self.rows = ByNumber(lambda: placed(paths, self.layout.columns))

    def __call__(self, shard: Shard) -> Part:
        entries = [parse(self.rows[number][1], self.layout) for number in shard.payload["rows"]]
        texts = [text for one in entries for text in one.texts]
        ids = iter(self.chat.response_ids(texts))
        rows = [
            {
                "id": prompt_hash(one.prompt)[:16],
                "messages": one.prompt,
                "prompt_ids": self.chat.render(one.prompt),
                "responses": [{"text": text, "ids": next(ids) + self.end, "finish": self.finish} for text in one.texts],
                "preference": one.preference._asdict() if one.preference else None,
            }
            for one in entries
        ]
        schema = PAIRED_SCHEMA if self.layout.name in PAIRED else SAMPLES_SCHEMA
        dropped = shard.payload["dropped"]
        table = pa.Table.from_pylist(rows, schema=schema)
        return Part(
            table=table,
            rows_in=len(rows) + sum(dropped.values()),
            dropped=dropped,
            stats={
                "responses": float(len(texts)),
                "spell_control": float(sum(map(self.chat.spells_control, texts))),
                **diversity(table["responses"]),
            },
        )


def paths_of(source: Input) -> list[Path]:
    """Return the files in their order, their bytes verified."""
    root = source.folder()
    return [root / file.path for file in source.files]


def finish(job: Job[ImportSettings], tables: Iterable[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary of sampled responses, with the length of the sequences and the source of it all."""
    lengths: list[NDArray[np.int64]] = []
    summary = summarise(job, _noting_lengths(tables, lengths), parts)
    sequences, source = np.concatenate(lengths), job.inputs["source"]
    return {
        **summary,
        "sequence_p95": float(np.percentile(sequences, 95)),
        "sequence_max": int(sequences.max()),
        "provenance": {
            "path": str(source.root / source.files[0].path if len(source.files) == 1 else source.root),
            "sha256": source.files[0].sha256 if len(source.files) == 1 else source.digest,
            "rows": sum(part["rows_in"] for part in parts),
            "layout": job.settings.layout,
            "columns": list(job.settings.columns),
            "assumed": assumed(job.settings, int(sum(part["stats"]["spell_control"] for part in parts))),
        },
    }


def _noting_lengths(tables: Iterable[pa.Table], lengths: list[NDArray[np.int64]]) -> Iterator[pa.Table]:
    """Yield the tables, and append to `lengths` the tokens of each prompt with its longest response."""
    for table in tables:
        prompts = pc.list_value_length(table["prompt_ids"]).to_numpy()
        responses = pc.list_value_length(pc.struct_field(pc.list_flatten(table["responses"]), "ids")).to_numpy()
        lengths.append(prompts + responses.reshape(len(prompts), -1).max(axis=1))
        yield table


def assumed(settings: ImportSettings, spell_control: int) -> list[str]:
    """Return the assumptions about what the file does not hold."""
    end = "was cut: nothing is appended" if settings.cut else "ended: the end-of-turn token is appended"
    lines = [f"a response's ids are those of its text tokenized again, and every response {end}"]
    if spell_control:
        lines.append(f"{spell_control} responses spell a control token, which is taken for text")
    if settings.layout == "pairs" and "chosen_probs" not in settings.columns:
        rates = "chosen_probs_win" in settings.columns
        p = "1/2 + the difference of the win rates" if rates else "1: it wins for sure, win rates .75 and .25"
        lines.append(f"the probability that chosen beats rejected is {p}")
    return lines
