"""What a file holds is seen from its bytes: every container and format gives the same rows, or one message."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from sparring.stages.errors import ConfigError, DataError
from sparring.stages.sample import texts
from sparring.stages.sample.data_files import data_files
from sparring.stages.sample.source import header, placed, rows
from tests.refusals import named, refused

GIVEN = [{"id": str(i), "prompt": f'Topic {i}; "briefly", please | now\nand 🌷'} for i in range(30)]
LINES = "".join(json.dumps(row) + "\n" for row in GIVEN).encode()


def values(path: Path) -> list[dict[str, Any]]:
    return [found for _, found in rows(path, ["id", "prompt"])]


def complaint(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        values(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(str(path)).lstrip(": ")


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(GIVEN), sink)
    return sink.getvalue()


def arrow(write: Callable[..., Any] = pyarrow.ipc.new_stream, table: pa.Table | None = None) -> bytes:
    table, sink = pa.Table.from_pylist(GIVEN) if table is None else table, io.BytesIO()
    with write(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue()


def delimited(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, GIVEN[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(GIVEN)
    return text.getvalue().encode()


def zipped(name: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(name, LINES)
    return sink.getvalue()


COLUMNS = {name: [row[name] for row in GIVEN] for name in ("id", "prompt")}
READ = {
    "plain.jsonl": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "crlf.ndjson": LINES.replace(b"\n", b"\r\n"),
    "gzip.jsonl": gzip.compress(LINES),
    "members.jsonl.gz": gzip.compress(LINES[:99]) + gzip.compress(LINES[99:]),
    "bzip2.jsonl": bz2.compress(LINES),
    "xz.jsonl.xz": lzma.compress(LINES),
    "zstd.jsonl.zst": pa.compress(LINES, "zstd", asbytes=True),
    "comma.csv": b"\xef\xbb\xbf" + delimited(","),
    "packed.csv.gz": gzip.compress(delimited(",")),
    "tab.tsv": delimited("\t"),
    "packed.tsv.gz": gzip.compress(delimited("\t")),
    "list.json": json.dumps(GIVEN).encode(),
    "indented.jsonl": json.dumps(GIVEN, indent=2).encode(),
    "packed.json.gz": gzip.compress(json.dumps(GIVEN).encode()),
    "data.json": json.dumps({"version": 1, "data": GIVEN}, indent=1).encode(),
    "viewer.json": json.dumps({"rows": [{"row_idx": i, "row": row} for i, row in enumerate(GIVEN)]}).encode(),
    "columns.json": json.dumps(COLUMNS).encode(),
    "pandas.json": json.dumps({n: dict(zip(map(str, range(30)), v, strict=True)) for n, v in COLUMNS.items()}).encode(),
    "lines.json": LINES,
    "lines.csv": LINES,
    "lines.txt": LINES,
    "plain.parquet": parquet(),
    "parquet.jsonl": parquet(),
    "stream.arrow": arrow(),
    "file.arrow": arrow(pyarrow.ipc.new_file),
    "arrow.parquet": arrow(),
}


@pytest.mark.parametrize("name", READ)
def test_every_format_and_container_gives_the_same_rows(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(texts, "CHUNK", 50)  # a JSON list comes in many pieces
    (tmp_path / name).write_bytes(READ[name])
    assert values(tmp_path / name) == GIVEN
    assert header(tmp_path / name) == ["id", "prompt"]


NAMED: dict[str, tuple[bytes, str | tuple[str, ...]]] = {
    "semicolon.csv": (delimited(";"), "semicolon-separated"),
    "header.csv": (b"id;prompt\n", "semicolon-separated"),
    "quoted.csv": (b'"id";"prompt"\n"1";"a, b"\n', "semicolon-separated"),
    "mixed.csv": (b"id;prompt, or so\n1;a, b\n", "semicolon-separated"),
    "after blanks.csv": (b"\n\nid;prompt\n1;a\n", "semicolon-separated"),
    "excel.csv": (b"sep=;\nid;prompt\n1;a\n", "semicolon-separated"),
    "tab.csv": (delimited("\t"), ("tab-separated", ".tsv")),
    "pipe.csv": (delimited("|"), "pipe-separated"),
    "colon.csv": (b"id:prompt\n1:a\n", "':'"),
    "comma.tsv": (delimited(","), ("comma-separated", ".csv")),
    "twice.csv": (b"prompt,prompt\na,b\n", ("column prompt", "twice")),
    "quote.csv": (b'id,prompt\n1,a\n2,"b\n3,c\n', ("line 3", "quote")),
    "few.csv": (b"id,prompt\n1,a\n2\n", ("line 3", "prompt")),
    "many.csv": (b'id,prompt\n1,"a\nb"\n2,c,d\n', ("line 4", "header")),
    "returns.csv": (b"id,prompt\r1,a\r", ("carriage return", "line feeds")),
    "one column, returns.csv": (b"prompt\rWhy?\rHow?\r", "carriage return"),
    "no header.csv": (b"Why is it so?\nHow is it?\n", ("columns", "prompt")),
    "latin.csv": ("id,prompt\n1,café\n".encode("latin-1"), ("line 2", "UTF-8", "0xe9", "15")),
    "utf16.csv": (delimited(",").decode().encode("utf-16"), "UTF-16"),
    "utf16le.jsonl": (LINES.decode().encode("utf-16-le"), "UTF-16"),
    "nul.jsonl": (b'{"prompt": "a\0b"}\n', ("byte 13", "NUL")),
    "late nul.jsonl": (LINES * 90 + b"\0\n", ("line 2701", "NUL")),
    "zip.jsonl": (zipped("prompts.jsonl"), "archive"),
    "book.csv": (zipped("[Content_Types].xml"), "Excel"),
    "pickle.jsonl": (pickle.dumps(GIVEN), "pickle"),
    "pointer.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "page.jsonl": (b"\n<!DOCTYPE html>\n<html>", "HTML"),
    "cut.jsonl.gz": (gzip.compress(LINES)[:-9], "compressed"),
    "cut.jsonl.zst": (pa.compress(LINES, "zstd", asbytes=True)[:-9], "compressed"),
    "packed.parquet.gz": (gzip.compress(parquet()), ("parquet", "gzip")),
    "cut.parquet": (parquet()[:-20], "parquet"),
    "cut.arrow": (arrow()[:600], "arrow"),
    "text.parquet": (b"what?", ("parquet", "begins")),
    "cut.json": (json.dumps(GIVEN).encode()[:-30], ("JSON", "row 29")),
    "more.json": (json.dumps(GIVEN).encode() + b"\n[]", "list"),
    "texts.json": (b'["a", "b"]', ("row 1", "object")),
    "deep.jsonl": (b'{"prompt":' + b"[" * 100_000, ("line 1", "JSON")),
    "csv.jsonl": (b"id,prompt\n1,a\n", ("CSV", ".csv")),
    "digits.jsonl": (b'{"n": ' + b"1" * 9_000 + b"}", ("line 1", "JSON", "digits")),
    "deep.json": (b"[{" + b'"a": [' * 100_000, ("JSON", "row 0")),
    "twice.jsonl": (LINES + b'{"prompt": "a", "prompt": "b"}\n', ("line 31", "prompt", "twice")),
    "twice.json": (b'[{"id": 1}, {"id": 1, "id": 2}]', ("row 2", "id", "twice")),
    "twice.arrow": (arrow(table=pa.table([["a"], ["b"]], ["prompt", "prompt"])), ("column prompt", "twice")),
    "splits.json": (b'{"train": [{"a": 1}], "test": [{"a": 2}], "errors": []}', "train, test"),
    "returns.jsonl": (LINES.replace(b"\n", b"\r"), ("values", "line feeds")),
    "one line.jsonl": (LINES.replace(b"\n", b""), ("line 1", "values")),
    "indented.json": (b'{\n"id": 1\n}\n{\n"id": 2\n}\n', ("list", "object")),
    "model.gguf": (b"GGUF" + bytes(60), ("byte 4", "NUL")),
    "words.txt": (b"What is that?\n", ".jsonl"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_not_read_is_named(tmp_path: Path, name: str) -> None:
    content, names = NAMED[name]
    (tmp_path / name).write_bytes(content)
    named(complaint(tmp_path / name), names)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json", "empty.csv", "blank.jsonl", "none.json", "header.csv"])
def test_files_without_rows(tmp_path: Path, name: str) -> None:
    content = {"blank.jsonl": " \n\n", "none.json": "[]", "header.csv": "id,prompt\n"}.get(name, "")
    (tmp_path / name).write_text(content)
    assert values(tmp_path / name) == []


def test_spaces_after_commas_are_no_part_of_names_and_values(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text('id, prompt\n1, "a, b"\n')
    assert values(tmp_path / "f.csv") == [{"id": "1", "prompt": "a, b"}]


# Folders


def saved(folder: Path, given: list[dict[str, Any]]) -> Path:
    """What datasets' save_to_disk writes, in two files."""
    folder.mkdir(parents=True)
    names = []
    for number, some in enumerate((given[:9], given[9:])):
        names.append(f"data-{number:05d}-of-00002.arrow")
        table = pa.Table.from_pylist(some)
        with pyarrow.ipc.new_stream(folder / names[-1], table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def read_folder(path: Path, split: str | None = None) -> list[dict[str, Any]]:
    return [found for _, found in placed(data_files(path, split, "--split"), ["id", "prompt"])]


def test_a_saved_dataset(tmp_path: Path) -> None:
    assert read_folder(saved(tmp_path / "saved", GIVEN)) == GIVEN
    with refused(ConfigError, "--split=train", str(tmp_path / "saved")):
        read_folder(tmp_path / "saved", "train")
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with refused(DataError, "saved", "data-00001-of-00002.arrow"):
        read_folder(tmp_path / "saved")


def test_a_saved_dataset_of_datasets_itself(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    both = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(GIVEN[a:]) for name, a in (("train", 0), ("test", 9))}
    )
    both.save_to_disk(tmp_path / "both")
    both["test"].save_to_disk(tmp_path / "one")
    assert read_folder(tmp_path / "both", "test") == read_folder(tmp_path / "one") == GIVEN[9:]
    assert read_folder(tmp_path / "both", "train") == GIVEN
    with refused(ConfigError, str(tmp_path / "both"), "train, test", "--split=train"):
        read_folder(tmp_path / "both")
    with refused(ConfigError, "--split=valid", "train, test"):
        read_folder(tmp_path / "both", "valid")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    for path in (tmp_path / "rows.jsonl", Path("/dev/zero")):
        with refused(DataError, f"{path}: ", "device"):
            data_files(path, None, "--split")
        named(complaint(path), "device")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"_data_files": 3, "splits": 3}', '{"splits": ["/etc", "../x"]}'])
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_a_damaged_saved_folder(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with refused((DataError, ConfigError), str(tmp_path)):
        read_folder(tmp_path)


def test_a_saved_folder_leads_nowhere_else(tmp_path: Path) -> None:
    saved(tmp_path / "saved", GIVEN)
    (tmp_path / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../x.arrow"}]}))
    with refused(DataError, "saved", "state.json", "layout"):
        read_folder(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with refused(DataError, "state.json", "JSON"):
        read_folder(tmp_path / "saved")


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for number, some in enumerate((GIVEN[:9], GIVEN[9:])):
        pq.write_table(pa.Table.from_pylist(some), tmp_path / f"train-{number:05d}-of-00002.parquet")
    (tmp_path / "README.md").write_text("mine")
    assert read_folder(tmp_path) == GIVEN
    pq.write_table(pa.Table.from_pylist(GIVEN[:3]), tmp_path / "test-00000-of-00001.parquet")
    assert read_folder(tmp_path, "test") == GIVEN[:3]
    with refused(ConfigError, str(tmp_path), "test, train"):
        read_folder(tmp_path)
    (tmp_path / "more.csv").write_text("id,prompt\n")
    with refused(DataError, str(tmp_path), ".csv", ".parquet"):
        read_folder(tmp_path)
    (tmp_path / "none.jsonl").mkdir()
    with refused(DataError, "none.jsonl: ", ".jsonl, "):
        read_folder(tmp_path / "none.jsonl")
    with refused(DataError, str(tmp_path / "nowhere")):
        read_folder(tmp_path / "nowhere")
