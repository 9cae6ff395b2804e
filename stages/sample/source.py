"""Read rows from .jsonl, .parquet, .csv and .json files, one at a time, and prompts from rows.

What is wrong is one message with its place.
"""

from __future__ import annotations

import csv
import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from pipeline.errors import DataError

FORMATS = (".jsonl", ".parquet", ".csv")


class Message(TypedDict):
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """A prompt and its place in the file (`line 17`, `row 17`)."""

    where: str
    messages: list[Message]


def read(path: Path, column: str, *, drop_empty: bool = False) -> Iterator[Row]:
    """Yield the prompts of `path`; DataError when a row is wrong or there is none. A last answer is left out.

    `drop_empty`: a prompt without text comes without messages instead, for the caller to count.
    """
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path}: prompts are read from {', '.join(FORMATS)} files; convert this one.")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check prompts.path.")
    none = True
    for where, values in rows(path, [column]):
        none = False
        if column not in values:
            raise DataError(f"{path}: {where}: {_no_column(column, list(values))}")
        try:
            yield Row(where, messages(_asked(values[column])))
        except Empty as error:
            if not drop_empty:
                raise DataError(f"{path}: {where}: {column} {error}; mend or remove the row.") from None
            yield Row(where, [])
        except ValueError as error:
            raise DataError(f"{path}: {where}: {column} {error}; mend or remove the row.") from None
    if none:
        raise DataError(f"{path}: holds no prompts; give a file with at least one row.")


def _no_column(column: str, columns: Sequence[str]) -> str:
    near = difflib.get_close_matches(column, columns, n=1, cutoff=0.4)
    hint = f"set prompts.column={near[0]}" if near else "set prompts.column to one of them"
    return f"no column {column}; there are: {', '.join(columns) or 'none'}; {hint}."


class Empty(ValueError):
    """A prompt without text."""


def rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the values of each row of a file of FORMATS, or .json, which is read whole.

    Of parquet only `columns` are read, and DataError is raised when one is not there; the others give all they have.
    """
    readers = {".jsonl": _jsonl, ".parquet": _parquet, ".csv": _csv, ".json": _json}
    return readers[path.suffix.lower()](path, columns)


def header(path: Path) -> list[str]:
    """Return the columns of a file: those that parquet names, else those of its first row."""
    if path.suffix.lower() == ".parquet":
        return _parquet_columns(path)
    return list(next(rows(path, []), ("", {}))[1])


def messages(value: Any) -> list[Message]:
    """Return the turns of a prompt; ValueError says what is wrong, without the place."""
    turns = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(turns, list):
        raise (Empty if value is None else ValueError)(f"is {kind(value)}, not a text or a list of messages")
    if not turns:
        raise Empty("is an empty list of messages")
    found = [_message(turn) for turn in turns]
    roles = [m["role"] for m in found]
    talk = roles[1:] if roles[0] == "system" else roles
    if talk != ["user" if i % 2 == 0 else "assistant" for i in range(len(talk))] or not talk or talk[-1] != "user":
        raise ValueError(
            f"has the roles {', '.join(roles)}: after an optional system message, user and assistant take turns "
            "and the last is user"
        )
    return found


def _asked(value: Any) -> Any:
    """Return messages without a last answer, which data to train on has: the prompt is what came before it."""
    last = value[-1] if isinstance(value, list) and len(value) > 1 else None
    return value[:-1] if isinstance(last, dict) and last.get("role") == "assistant" else value


def _message(turn: Any) -> Message:
    if isinstance(turn, dict) and "role" not in turn:
        turn = {"role": "user", **turn}
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
        raise ValueError("has a message that is not {role: text, content: text}")
    if not turn["content"].strip():
        raise Empty("is empty" if turn["role"] == "user" else f"has an empty {turn['role']} message")
    return {"role": turn["role"], "content": turn["content"]}


def kind(value: Any) -> str:
    """Return what a value is, in words."""
    return {type(None): "null", dict: "an object", bool: "a boolean"}.get(type(value), f"a {type(value).__name__}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of the lines; DataError with line and byte where the file is not UTF-8."""
    offset = 0
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: line {number} is not UTF-8 "
                    f"(byte 0x{raw[error.start]:02x} at offset {offset + error.start}); save the file as UTF-8."
                ) from None
            offset += len(raw)


def _jsonl(path: Path, _columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            cut = "" if line.endswith("\n") else " It is the last one: the file looks cut off."
            raise DataError(
                f"{path}: line {number} is not complete JSON ({error}); mend or remove the line.{cut}"
            ) from None
        if not isinstance(values, dict):
            raise DataError(f"{path}: line {number} is {kind(values)}, not an object; write {{column: value}} lines.")
        yield f"line {number}", values


def _json(path: Path, _columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not complete JSON ({error}); get it again.") from None
    if not isinstance(found, list):
        raise DataError(f"{path}: holds {kind(found)}, not a list of objects; write [{{column: value}}, ...].")
    for number, values in enumerate(found, start=1):
        if not isinstance(values, dict):
            raise DataError(f"{path}: row {number} is {kind(values)}, not an object; write {{column: value}}.")
        yield f"row {number}", values


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq

    names, row = _parquet_columns(path), 0
    for column in columns:
        if column not in names:
            raise DataError(f"{path}: {_no_column(column, names)}")
    with _readable(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
            for values in batch.to_pylist():
                row += 1
                yield f"row {row}", values


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    with _readable(path), pq.ParquetFile(path) as file:
        return list(file.schema_arrow.names)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error}); get it again.") from None


def _cell(text: str) -> Any:
    """Return a CSV cell: a message list where its text is the JSON of one, else the text."""
    if not text.lstrip().startswith("[{"):
        return text
    try:
        turns = json.loads(text)
    except ValueError:
        return text
    return turns if all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns) else text


def _csv(path: Path, _columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        for values in reader:
            short = [name for name, value in values.items() if value is None]
            if None in values or short:
                wrong = (
                    f"has no value for {', '.join(short)}" if short else "has more values than the header has columns"
                )
                raise DataError(f"{path}: line {reader.line_num} {wrong}; mend or remove the row.")
            yield f"line {reader.line_num}", {name: _cell(text) for name, text in values.items()}
    except csv.Error as error:
        raise DataError(
            f"{path}: line {reader.line_num} is not CSV ({error}); "
            "mend the row, or get the file again if it is cut off."
        ) from None
