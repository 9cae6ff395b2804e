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
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from sparring.stages.errors import ConfigError, DataError
from sparring.stages.sample.messages import is_message, kind

if TYPE_CHECKING:
    import pyarrow as pa

Rows = Iterator[tuple[str, dict[str, Any]]]
"""Place and values of each row."""
T = TypeVar("T")

TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = {"gzip": rb"\x1f\x8b", "bzip2": rb"BZh[1-9]1AY&SY", "xz": rb"\xfd7zXZ\0", "zstd": rb"\x28\xb5\x2f\xfd"}
PACKED_NAMES = (".gz", ".bz2", ".xz", ".zst")
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
CHUNK = 1 << 20
"""Bytes of a JSON list that are read at once."""
BATCH = 1024
"""Rows of parquet or Arrow that are read at once."""
HEADER_ROWS = 100
"""Rows of a file without a header that are looked at for its columns."""
WRAPPERS = ("data", "rows", "examples", "items", "train")
"""Keys of a JSON object that holds the list of rows."""
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")


def rows(path: Path, columns: Sequence[str]) -> Rows:
    """Yield the place and the values of each row of a file.

    Of parquet and Arrow only those of `columns` that are there are read; the others give all they have.
    """
    form = _format(path)
    if form in COLUMNAR:
        return _columnar(path, form, columns)
    return {"csv": _csv, "json": _json, "jsonl": _jsonl}[form](path)


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
        return next(_records(path), (1, []))[1]
    return list(dict.fromkeys(name for _, values in islice(rows(path, []), HEADER_ROWS) for name in values))


def data_files(path: Path, split: str | None, key: str) -> list[Path]:
    """Return the files that `path` stands for: itself, or those of a folder, in order; of splits the chosen one.

    key: what chooses the split, for messages.
    """
    if not path.is_dir():
        check_file(path)
        if split is not None:
            raise ConfigError(f"{key}={split}: {path} is a file, which has no splits; leave {key} out.")
        return [path]
    if (path / "dataset_dict.json").is_file():
        names = _saved_json(path / "dataset_dict.json").get("splits")
        plain = [name for name in names if _is_plain(name)] if isinstance(names, list) else []
        splits = {name: path / name for name in plain}
        return data_files(splits[_chosen(path, list(splits), split, key)], None, key)
    if (path / "state.json").is_file():
        if split is not None:
            raise ConfigError(f"{key}={split}: {path} is one dataset, which has no splits; leave {key} out.")
        return _saved(path)
    return _folder(path, split, key)


def check_file(path: Path) -> None:
    """DataError where there is no file; a pipe, which would be waited for and can be read once, is none."""
    if not path.is_file():
        what = "is a pipe, a socket or a device; write the rows to a file" if path.exists() else "there is no such file"
        raise DataError(f"{path}: {what}.")


def _chosen(path: Path, splits: Sequence[str], split: str | None, key: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        which = f"{key}={split}: " if split else ""
        hint = f"choose one: {key}={splits[0]}" if splits else "save it again"
        raise ConfigError(f"{which}{path}: has the splits {', '.join(splits) or 'none'}; {hint}.")
    return split


def _saved(path: Path) -> list[Path]:
    """Return the Arrow files of a dataset that `save_to_disk` wrote."""
    state = _saved_json(path / "state.json")
    listed = state.get("_data_files")
    named = listed if isinstance(listed, list) else []
    names = [str(one["filename"]) for one in named if isinstance(one, dict) and "filename" in one]
    if state.get("_indices_data_files") or not all(map(_is_plain, names)):
        raise DataError(f"{path}: state.json has a layout that is not read; save the dataset again with save_to_disk.")
    for name in names:
        if not (path / name).is_file():
            raise DataError(f"{path}: {name} is missing, which state.json names; copy all of the folder again.")
    if not names:
        raise DataError(f"{path}: holds no rows; give a dataset with at least one.")
    return [path / name for name in names]


def _is_plain(name: Any) -> bool:
    """Return whether a name is that of a file in the same folder."""
    return isinstance(name, str) and Path(name).name == name


def _saved_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not complete JSON ({_why(error)}); copy all of the folder again.") from None
    return values if isinstance(values, dict) else {}


def _folder(path: Path, split: str | None, key: str) -> list[Path]:
    """Return the data files of a folder (or of its `data`), which must be of one format.

    A file's name has its split, as `test-00000-of-00002.parquet` or `test.jsonl` have; others are of `train`.
    """
    listed: list[Path] = []
    for place in (path, path / "data"):
        every = sorted(place.iterdir()) if place.is_dir() else []
        listed = listed or [
            one for one in every if one.is_file() and _suffix(one) in FORMATS and one.name[0] not in "._"
        ]
    if len({_suffix(one) for one in listed}) > 1:  # a dataset_info.json beside the data is none
        listed = [one for one in listed if _suffix(one) != ".json"]
    kinds = Counter(map(_suffix, listed))
    if len(kinds) != 1:
        what = "holds files of " + " and ".join(sorted(kinds)) if kinds else f"holds no {', '.join(FORMATS)} file"
        raise DataError(f"{path}: {what}; give one file, or a folder with files of one format.")
    splits: dict[str, list[Path]] = {}
    for one in listed:
        stem = one.name.partition(".")[0]
        shard = SHARD.fullmatch(stem)
        splits.setdefault(shard["split"] if shard else stem if stem in SPLITS else "train", []).append(one)
    if split is None and len(splits) == 1:
        return listed
    return splits[_chosen(path, sorted(splits), split, key)]


def _suffix(path: Path) -> str:
    """Return the suffix of a file's name, without that of its packing."""
    name = path.with_suffix("") if path.suffix.lower() in PACKED_NAMES else path
    return name.suffix.lower().replace(".ndjson", ".jsonl")


# What a file is


def _format(path: Path) -> str:
    """Return jsonl, json, csv, parquet, arrow file or arrow stream; DataError names what is none of them."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give one of the files in it.")
    check_file(path)
    with _opened(path) as (handle, packing):
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
    suffix, start = _suffix(path), head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"[" and (suffix in TEXTS or suffix not in FORMATS):
        return "json"
    if start == b"{":  # one object a line, or one of many lines
        lines = (line.strip() for _, line in _lines(path))
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


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], str]]:
    """Open a file for reading, unpacked where it is packed, and yield by what as well; DataError where that fails."""
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


# Formats


def _lines(path: Path) -> Generator[tuple[int, str]]:
    """Yield (number, text) of the lines; DataError with line and byte where they are not text in UTF-8."""
    offset = 0
    with _opened(path) as (handle, _):
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


def _jsonl(path: Path) -> Rows:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_unique)
        except _Twice as name:
            raise DataError(f"{path}: line {number} names {name} twice; mend or remove the line.") from None
        except (ValueError, RecursionError) as error:
            hint = "" if line.endswith("\n") else " It is the last one: the file looks cut off."
            if number == 1 and line[:1] not in "{[":
                hint = " The file does not begin as JSON does: if it is CSV, name it .csv."
            elif "Extra data" in str(error):
                returns = ", with line feeds, not carriage returns alone" if "\r" in line.strip() else ""
                hint = f" It holds several values: write one a line{returns}."
            raise DataError(
                f"{path}: line {number} is not complete JSON ({_why(error)}); mend or remove the line.{hint}"
            ) from None
        yield f"line {number}", _object(f"{path}: line {number}", values)


class _Twice(Exception):
    """A JSON object that has a name twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; _Twice where a name has two values, of which one would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _Twice(next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1))
    return values


def _why(error: ValueError | RecursionError) -> str:
    """Return what is wrong with a JSON text."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "a number of thousands of digits" if "integer string conversion" in str(error) else str(error)


def _object(place: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise DataError(f"{place} is {kind(values)}, not an object; write {{column: value}}.")
    return values


def _json(path: Path) -> Rows:
    """Yield the objects of a list as they come; of an object, which is read at once, the rows that it holds."""
    decoder, number, text, at = json.JSONDecoder(object_pairs_hook=_unique), 0, "", 0
    with closing(_pieces(path)) as pieces:
        text = next(pieces, "").lstrip()
        if text[:1] != "[":
            yield from _in_object(path, text + "".join(pieces))
            return
        at = 1
        while True:
            start = _blank(text, at)
            if number and text[start : start + 1] == ",":
                start = _blank(text, start + 1)
            elif text[start : start + 1] == "]":
                break
            elif number and start < len(text):
                raise DataError(f"{path}: no comma after row {number}; mend the file.")
            try:
                values, at = decoder.raw_decode(text, start)
            except _Twice as name:
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
            yield f"row {number}", _object(f"{path}: row {number}", values)
        if (text[start + 1 :] + "".join(pieces)).strip():
            raise DataError(f"{path}: goes on after the end of the list; write one list, or an object a line.")


def _blank(text: str, at: int) -> int:
    """Return where the white space that begins at `at` ends."""
    found = re.compile(r"\s*").match(text, at)
    return found.end() if found else at


def _pieces(path: Path) -> Generator[str]:
    """Yield the text of a file, some of it at a time."""
    decode, offset = codecs.getincrementaldecoder("utf-8-sig")().decode, 0
    with _opened(path) as (handle, _):
        while raw := handle.read(CHUNK):
            try:
                yield decode(raw)
            except UnicodeDecodeError as error:
                place = f"byte 0x{error.object[error.start]:02x} near offset {offset + error.start}"
                raise DataError(f"{path}: is not UTF-8 ({place}); save the file as UTF-8.") from None
            offset += len(raw)


def _in_object(path: Path, text: str) -> Rows:
    try:
        document = _object(f"{path}: the document", json.loads(text or "{}", object_pairs_hook=_unique))
    except _Twice as name:
        raise DataError(f"{path}: an object names {name} twice; mend the file.") from None
    except (ValueError, RecursionError) as error:
        more = "write one list, or an object a line" if "Extra data" in str(error) else "get it again"
        raise DataError(f"{path}: not complete JSON ({_why(error)}); {more}.") from None
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


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each record of a CSV file with the number of its first line; the header first, its names stripped."""
    csv.field_size_limit(sys.maxsize)
    delimiter, lines = "\t" if _suffix(path) == ".tsv" else ",", _lines(path)
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
        known = {"unexpected": "a quote is not closed", "new-line": "lines end with a carriage return alone"}
        words = next((words for begin, words in known.items() if str(error).startswith(begin)), str(error))
        raise DataError(
            f"{path}: line {start} is not CSV ({words}); mend the row, or get the file again if it is cut off."
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


def _csv(path: Path) -> Rows:
    records = _records(path)
    _, names = next(records, (1, []))
    _named_once(path, [name for name in names if name])
    for line, cells in records:
        if len(cells) < len(names):
            wrong = f"has no value for {', '.join(names[len(cells) :])}"
        elif len(cells) > len(names):
            wrong = "has more values than the header has columns"
        else:
            yield f"line {line}", dict(zip(names, cells, strict=True))
            continue
        raise DataError(f"{path}: line {line} {wrong}; mend or remove the row.")


def _named_once(path: Path, names: list[str]) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: names the column {twice[0]} twice; rename one of them.")
    return names


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
                yield _named_once(path, file.schema_arrow.names), lambda names: file.iter_batches(BATCH, columns=names)
            return
        with pa.memory_map(str(path)) as mapped:
            if form == "arrow file":
                table = pyarrow.ipc.open_file(mapped)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                table = batches = pyarrow.ipc.open_stream(mapped)
            yield _named_once(path, table.schema.names), lambda names: (batch.select(names) for batch in batches)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        words = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path}: not a readable {form.split()[0]} file ({words}); get it again.") from None
