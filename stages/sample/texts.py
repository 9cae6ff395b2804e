"""Text files as rows: JSON lines, a JSON list (streamed), a JSON object, CSV; packed with gzip, bzip2, xz or zstd.

What is wrong is one DataError with its place: `file: line 17`, or `file: row 17` where there are no lines.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from sparring.stages.errors import DataError
from sparring.stages.sample.messages import is_message, kind

Rows = Iterator[tuple[str, dict[str, Any]]]
"""Place and values of each row."""

PACKED = {"gzip": rb"\x1f\x8b", "bzip2": rb"BZh[1-9]1AY&SY", "xz": rb"\xfd7zXZ\0", "zstd": rb"\x28\xb5\x2f\xfd"}
PACKED_NAMES = (".gz", ".bz2", ".xz", ".zst")
CHUNK = 1 << 20
"""Bytes of a JSON list that are read at once."""
WRAPPERS = ("data", "rows", "examples", "items", "train")
"""Keys of a JSON object that holds the list of rows."""
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}


def suffix_of(path: Path) -> str:
    """Return the suffix of a file's name, without that of its packing."""
    name = path.with_suffix("") if path.suffix.lower() in PACKED_NAMES else path
    return name.suffix.lower().replace(".ndjson", ".jsonl")


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], str]]:
    """Yield a file opened for reading, unpacked, and what packed it ("": nothing); DataError where that fails."""
    try:
        with path.open("rb") as raw:
            start = raw.read(16)
            raw.seek(0)
            packing = next((name for name, magic in PACKED.items() if re.match(magic, start)), "")
            if packing == "zstd":
                import pyarrow as pa

                yield io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")), packing
            else:
                unpacks: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
                yield unpacks[packing](raw) if packing else raw, packing
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions.") from None
        raise DataError(f"{path}: its compressed bytes are damaged or cut off ({error}); get it again.") from None


def text_lines(path: Path) -> Generator[tuple[int, str]]:
    """Yield (number, text) of the lines; DataError with line and byte where they are not text in UTF-8."""
    offset = 0
    with opened(path) as (handle, _):
        for number, raw in enumerate(handle, start=1):
            if b"\0" in raw:
                raise DataError(f"{path}: line {number} holds a NUL byte, which is no text; get the file again.")
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: line {number} is not UTF-8 "
                    f"(byte 0x{raw[error.start]:02x} at offset {offset + error.start}); save the file as UTF-8."
                ) from None
            offset += len(raw)


def json_lines(path: Path) -> Rows:
    """Yield the object of each line that is not blank."""
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_unique)
        except _NamedTwice as name:
            raise DataError(f"{path}: line {number} names {name} twice; mend or remove the line.") from None
        except (ValueError, RecursionError) as error:
            hint = "" if line.endswith("\n") else " It is the last one: the file looks cut off."
            if number == 1 and line[:1] not in "{[":
                hint = " The file does not begin as JSON does: if it is CSV, name it .csv."
            elif "Extra data" in str(error):
                returns = ", with line feeds, not carriage returns alone" if "\r" in line.strip() else ""
                hint = f" It holds several values: write one a line{returns}."
            raise DataError(
                f"{path}: line {number} is not complete JSON ({json_fault(error)}); mend or remove the line.{hint}"
            ) from None
        yield f"line {number}", _as_object(f"{path}: line {number}", values)


class _NamedTwice(Exception):
    """A JSON object has two values for one name."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; _NamedTwice where one of two values would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _NamedTwice(next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1))
    return values


def json_fault(error: ValueError | RecursionError) -> str:
    """Return what is wrong with a JSON text, for a message."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "a number of thousands of digits" if "integer string conversion" in str(error) else str(error)


def _as_object(place: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise DataError(f"{place} is {kind(values)}, not an object; write {{column: value}}.")
    return values


def json_rows(path: Path) -> Rows:
    """Yield the objects of a list as they come; of an object, which is read at once, the rows that it holds."""
    decoder, number, text, at = json.JSONDecoder(object_pairs_hook=_unique), 0, "", 0
    with closing(_chunks(path)) as pieces:
        text = next(pieces, "").lstrip()
        if text[:1] != "[":
            yield from _rows_in_object(path, text + "".join(pieces))
            return
        at = 1
        while True:
            start = _skip_space(text, at)
            if number and text[start : start + 1] == ",":
                start = _skip_space(text, start + 1)
            elif text[start : start + 1] == "]":
                break
            elif number and start < len(text):
                raise DataError(f"{path}: no comma after row {number}; mend the file.")
            try:
                values, at = decoder.raw_decode(text, start)
            except _NamedTwice as name:
                raise DataError(f"{path}: row {number + 1} names {name} twice; mend or remove the row.") from None
            except (ValueError, RecursionError):
                rest = text[at:]
                more = [piece for piece in [next(pieces, "")] if piece]
                while more and sum(map(len, more)) < len(rest) and (piece := next(pieces, "")):
                    more.append(piece)  # a long row is not tried at every piece
                if not more:
                    raise DataError(
                        f"{path}: not complete JSON after row {number}; mend the next row, or get it again."
                    ) from None
                text, at = "".join([rest, *more]), 0
                continue
            number += 1
            yield f"row {number}", _as_object(f"{path}: row {number}", values)
        if (text[start + 1 :] + "".join(pieces)).strip():
            raise DataError(f"{path}: goes on after the end of the list; write one list, or an object a line.")


def _skip_space(text: str, at: int) -> int:
    """Return where the white space that begins at `at` ends."""
    blanks = re.compile(r"\s*").match(text, at)
    return blanks.end() if blanks else at


def _chunks(path: Path) -> Generator[str]:
    """Yield the text of a file, some of it at a time."""
    decode, offset = codecs.getincrementaldecoder("utf-8-sig")().decode, 0
    with opened(path) as (handle, _):
        while raw := handle.read(CHUNK):
            try:
                yield decode(raw)
            except UnicodeDecodeError as error:
                place = f"byte 0x{error.object[error.start]:02x} near offset {offset + error.start}"
                raise DataError(f"{path}: is not UTF-8 ({place}); save the file as UTF-8.") from None
            offset += len(raw)


def _rows_in_object(path: Path, text: str) -> Rows:
    try:
        document = _as_object(f"{path}: the document", json.loads(text or "{}", object_pairs_hook=_unique))
    except _NamedTwice as name:
        raise DataError(f"{path}: an object names {name} twice; mend the file.") from None
    except (ValueError, RecursionError) as error:
        more = "write one list, or an object a line" if "Extra data" in str(error) else "get it again"
        raise DataError(f"{path}: not complete JSON ({json_fault(error)}); {more}.") from None
    wrapped = {name: document[name] for name in (*WRAPPERS, *SPLITS) if isinstance(document.get(name), list)}
    lists = [name for name, rows in wrapped.items() if all(isinstance(one, dict) for one in rows)]
    full = [name for name in lists if document[name]]
    if len(full) > 1:
        raise DataError(f"{path}: holds the rows of {', '.join(full)}; write each to a file of its own.")
    # Else each name is a column: a list, or an object by row number as pandas writes it.
    columns = [list(one.values()) if isinstance(one, dict) else one for one in document.values()]
    keys = {tuple(one) for one in document.values() if isinstance(one, dict)}
    if lists:
        listed = document[(full or lists)[0]]
    elif (
        all(isinstance(one, list) and not any(map(is_message, one)) for one in columns)
        and all(key == tuple(map(str, range(len(key)))) for key in keys)
        and len({len(one) for one in columns}) == 1
    ):
        listed = [dict(zip(document, cells, strict=True)) for cells in zip(*columns, strict=True)]
    else:
        listed = [document] if document else []
    for number, values in enumerate(listed, start=1):
        yield f"row {number}", values.get("row", values) if "row_idx" in values else values


def csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each record of a CSV file with the number of its first line; the header first, its names stripped."""
    csv.field_size_limit(sys.maxsize)
    delimiter, lines = "\t" if suffix_of(path) == ".tsv" else ",", text_lines(path)
    begin, first = next(((number, line) for number, line in lines if line.strip()), (1, ""))
    _check_delimiter(path, first, delimiter)
    text = chain([first], (line for _, line in lines))
    reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=f"{delimiter} " in first)
    start = begin
    try:
        for cells in reader:
            if cells:
                yield start, cells if start > begin else [name.strip() for name in cells]
            start = begin + reader.line_num
    except csv.Error as error:
        reasons = {"unexpected": "a quote is not closed", "new-line": "lines end with a carriage return alone"}
        reason = next((reason for words, reason in reasons.items() if str(error).startswith(words)), str(error))
        raise DataError(
            f"{path}: line {start} is not CSV ({reason}); mend the row, or get the file again if it is cut off."
        ) from None


def _check_delimiter(path: Path, first: str, delimiter: str) -> None:
    """DataError where a header looks as if it were separated by something else: a line would become one value."""
    bare = re.sub(r'"[^"]*"', "", first).strip()
    if "\r" in bare:
        raise DataError(f"{path}: its lines end with a carriage return alone; save it with line feeds.")
    other = max((one for one in DELIMITERS if one != delimiter), key=bare.count)
    if bare.count(other) >= max(1, bare.count(delimiter)):
        seems = f"its header seems to be {DELIMITERS[other]}-separated"
    elif delimiter not in bare and (strange := re.search(r"[^\w\s.()/\-\ufeff]", bare)):
        seems = f"its header has no {DELIMITERS[delimiter]}, but {strange[0]!r}"
    else:
        return
    named = {"\t": "name it .tsv", ",": "name it .csv"}.get(other, "save it with commas")
    header = "save it with commas, below a line that names the columns, such as prompt"
    remedy = named if "seems" in seems else header
    raise DataError(f"{path}: is not {DELIMITERS[delimiter]}-separated: {seems}; {remedy}.")


def csv_rows(path: Path) -> Rows:
    """Yield the records of a CSV file as column -> text; DataError where one is longer or shorter than the header."""
    records = csv_records(path)
    _, names = next(records, (1, []))
    named_once(path, [name for name in names if name])
    for line, cells in records:
        if len(cells) < len(names):
            wrong = f"has no value for {', '.join(names[len(cells) :])}"
        elif len(cells) > len(names):
            wrong = "has more values than the header has columns"
        else:
            yield f"line {line}", dict(zip(names, cells, strict=True))
            continue
        raise DataError(f"{path}: line {line} {wrong}; mend or remove the row.")


def named_once(path: Path, names: list[str]) -> list[str]:
    """Return the columns; DataError where two have the same name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: names the column {twice[0]} twice; rename one of them.")
    return names
