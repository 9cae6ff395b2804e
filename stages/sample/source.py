"""Read rows from files, one at a time: the only reader of prompts, responses, pairs and suites.

What a file holds is seen from its first bytes, not from its name:

    text       JSON lines, a JSON list of objects (streamed), a JSON object ({"data": [..]}, {column: [..]}), CSV
    binary     parquet, Arrow (file or stream)
    packed     gzip, bzip2, xz or zstd of a text; what else is recognised is named with its remedy
    folder     `save_to_disk` of datasets, or files of one format; of several splits one is chosen

CSV is what is named .csv (commas) or .tsv (tabs): a file with another delimiter is refused, not guessed at.
What is wrong is one DataError with its place: `file: line 17`, or `file: row 17` where there are no lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from sparring.stages.errors import DataError, first_line
from sparring.stages.sample.data_files import FORMATS, check_file
from sparring.stages.sample.texts import (
    Rows,
    csv_records,
    csv_rows,
    json_lines,
    json_rows,
    named_once,
    opened,
    suffix_of,
    text_lines,
)

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
COLUMNAR = {"parquet": rb"PAR1\x15", "arrow file": rb"ARROW1\0\0", "arrow stream": rb"\xff\xff\xff\xff"}
UTF_16 = "text in UTF-16; save it as UTF-8"
OTHERS = {
    rb"version https://git-lfs": "a Git LFS pointer, not the data; run `git lfs pull`, or download the file itself",
    rb"\xff\xfe|\xfe\xff": UTF_16,
    rb"\xd0\xcf\x11\xe0|PK\x03\x04.{26}(\[Content_Types|docProps|_rels|xl/)": "an Excel workbook; save the sheet as "
    "CSV UTF-8, with commas",
    rb"PK\x03\x04|PK\x05\x06|7z\xbc\xaf|Rar!\x1a|.{257}ustar": "an archive; unpack it and give the file inside",
    rb"FEA1\0|Obj\x01|SQLite format 3\0|\x89HDF|%PDF-": "of a format that is not read; save the rows as parquet",
    rb"\x80[\x02-\x05]": "a Python pickle, which is never loaded; save the data as jsonl or parquet",
    rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|error)\b": "a page of HTML or XML, as a failed download "
    "leaves; look at it, and download the file again",
}
"""First bytes -> what the file is, and what to do."""
HEAD = 4096
"""Bytes that are looked at to see what a file is."""
BATCH = 1024
"""Rows of parquet or Arrow that are read at once."""
HEADER_ROWS = 100
"""Rows of a file without a header that are looked at for its columns."""


def rows(path: Path, columns: Sequence[str]) -> Rows:
    """Yield the place and the values of each row of a file.

    Of parquet and Arrow only those of `columns` that are there are read; the others give all they have.
    """
    form = _format(path)
    if form in COLUMNAR:
        return _columnar(path, form, columns)
    return {"csv": csv_rows, "json": json_rows, "jsonl": json_lines}[form](path)


def placed(paths: Sequence[Path], columns: Sequence[str]) -> Rows:
    """Yield the rows of several files that are read as one; a place names the file as well."""
    for path in paths:
        for where, values in rows(path, columns):
            yield f"{path}: {where}", values


class ByNumber(Generic[T]):
    """Rows by their number, from 0: one row in memory, read on from the last one, or anew where that was a later one.

    read: yields all rows from the first. DataError where there is no such row.
    """

    def __init__(self, read: Callable[[], Iterator[T]]) -> None:
        self.read, self.rows, self.at = read, read(), 0

    def __getitem__(self, number: int) -> T:
        if number < self.at:
            self.rows, self.at = self.read(), 0
        for row in islice(self.rows, number - self.at, None):
            self.at = number + 1
            return row
        raise DataError(f"row {number + 1} is missing: a source changed while it was read; run again.")


def header(path: Path) -> list[str]:
    """Return the columns of a file; of one that does not name them, those of its first rows."""
    form = _format(path)
    if form in COLUMNAR:
        with _table(path, form) as (names, _):
            return names
    if form == "csv":
        return next(csv_records(path), (1, []))[1]
    return list(dict.fromkeys(name for _, values in islice(rows(path, []), HEADER_ROWS) for name in values))


def _format(path: Path) -> str:
    """Return jsonl, json, csv, parquet, arrow file or arrow stream; DataError names what is none of them."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give one of the files in it.")
    check_file(path)
    with opened(path) as (handle, packing):
        head = handle.read(HEAD)
        for form, magic in COLUMNAR.items():
            if re.match(magic, head):
                if packing:
                    raise DataError(f"{path}: is {form.split()[0]} packed with {packing}; unpack it.")
                return form
    for magic, words in OTHERS.items():
        if re.match(magic, head, re.DOTALL | re.IGNORECASE):
            raise DataError(f"{path}: is {words}.")
    if b"\0" in head:
        halves = {at % 2 for at, byte in enumerate(head) if not byte}  # of Latin letters every second byte is NUL
        utf_16 = len(halves) == 1 and 3 * head.count(0) > len(head)
        words = UTF_16 if utf_16 else f"no text (byte {head.index(0)} is NUL); get it again"
        raise DataError(f"{path}: is {words}.")
    suffix, start = suffix_of(path), head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"[" and (suffix in TEXTS or suffix not in FORMATS):
        return "json"
    if start == b"{":  # one object a line, or one of many lines
        lines = (line.strip() for _, line in text_lines(path))
        with closing(lines):
            first = next(filter(None, lines))
            try:
                json.loads(first)
                one_a_line = suffix == ".jsonl" or any(lines)
            except (ValueError, RecursionError):
                one_a_line = suffix == ".jsonl" and first != "{"
        return "jsonl" if one_a_line else "json"
    if suffix in (".csv", ".tsv"):
        return "csv"
    if suffix in TEXTS:
        return suffix[1:]
    if suffix in FORMATS:
        raise DataError(f"{path}: not a readable {suffix[1:]} file (it begins with {head[:8]!r}); get it again.")
    raise DataError(f"{path}: rows are read from {', '.join(FORMATS)} files; convert this one.")


def _columnar(path: Path, form: str, columns: Sequence[str]) -> Rows:
    row = 0
    with _table(path, form) as (names, batches):
        for batch in batches([name for name in dict.fromkeys(columns) if name in names] or names[:1]):
            for first in range(0, batch.num_rows, BATCH):
                for values in batch.slice(first, BATCH).to_pylist():
                    row += 1
                    yield f"row {row}", values


@contextmanager
def _table(path: Path, form: str) -> Iterator[tuple[list[str], Callable[[list[str]], Iterator[pa.RecordBatch]]]]:
    """Open a parquet or Arrow file: its columns, and what reads some of them; DataError where it is damaged."""
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet as pq

    try:
        if form == "parquet":
            with pq.ParquetFile(path) as file:
                yield named_once(path, file.schema_arrow.names), lambda names: file.iter_batches(BATCH, columns=names)
            return
        with pa.memory_map(str(path)) as mapped:
            if form == "arrow file":
                table = pyarrow.ipc.open_file(mapped)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                table = batches = pyarrow.ipc.open_stream(mapped)
            yield named_once(path, table.schema.names), lambda names: (batch.select(names) for batch in batches)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable {form.split()[0]} file ({first_line(error)}); get it again.") from None
