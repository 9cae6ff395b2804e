"""The exported folder: copies of verified files, or weights in another dtype, tensor by tensor; whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from sparring.pipeline.store.staging import staged
from sparring.stages.errors import DataError
from sparring.stages.step import Input

DATASETS = "datasets"
"""Folder of the datasets in the export."""
WIDTHS = {"bfloat16": 2, "float32": 4}
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number of safetensors' floating types."""
OTHERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file of the export: where it goes, and what it is copied from, or its text; weights to cast have neither."""

    name: str
    bytes: int
    source: Path | None = None
    text: str | None = None

    @property
    def cast(self) -> bool:
        """Whether the file is made by casting weights; its size is known to within its header."""
        return self.source is None and self.text is None


def dtype_of(folder: Path) -> str:
    """Return the dtype of a model folder's weights, as its config.json has it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "unknown")


def model_pieces(source: Input, folder: Path, dtype: str) -> list[Piece]:
    """Return the files of the policy in `dtype`."""
    inside = [file for file in source.files if file.name.startswith("model/")]
    files = [Piece(name=Path(f.name).name, bytes=f.bytes, source=source.root / f.path) for f in inside]
    foreign = [piece.name for piece in files if piece.name.endswith((".bin", ".pt", ".pth", ".pkl", ".py"))]
    if foreign:
        raise DataError(f"{folder}: {', '.join(foreign)}: only safetensors and text files are exported; run it again.")
    if dtype_of(folder) == dtype:
        return files
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    kept = [p for p in files if p.name != "config.json" and not p.name.endswith((".safetensors", ".index.json"))]
    return [
        *kept,
        text_piece("config.json", json.dumps({**config, "dtype": dtype}, indent=2) + "\n"),
        *_cast_pieces(folder, dtype),
    ]


def _cast_pieces(folder: Path, dtype: str) -> list[Piece]:
    """Return the files that casting will make; ShardWriter fills them in the same order."""
    from sparring.stages.train.files.safetensors_writer import SHARD_BYTES

    held, sizes = 0, [0]
    for size in _sizes(folder, dtype):
        if held and held + size > SHARD_BYTES:
            held = 0
            sizes.append(0)
        held += size
        sizes[-1] += size
    if len(sizes) == 1:
        return [Piece(name="model.safetensors", bytes=sizes[0])]
    count = len(sizes)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    return [*(Piece(name=n, bytes=b) for n, b in zip(names, sizes, strict=True)),
            Piece(name="model.safetensors.index.json", bytes=0)]  # fmt: skip


def _sizes(folder: Path, dtype: str) -> Iterator[int]:
    """Yield the bytes of each tensor in `dtype`, from the files' heads alone."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as handle:
            for name in list(handle.keys()):
                tensor = handle.get_slice(name)
                kind, count = tensor.get_dtype(), 1
                for n in tensor.get_shape():
                    count *= n
                yield count * (WIDTHS[dtype] if kind in FLOATS else OTHERS.get(kind, 8))


def text_piece(name: str, text: str) -> Piece:
    """Return a file of this text."""
    return Piece(name=name, bytes=len(text.encode()), text=text)


def write(pieces: Iterable[Piece], source: Path, dtype: str, target: Path) -> None:
    """Make `target` of all pieces; DataError where it exists or does not fit on the disk."""
    pieces = list(pieces)
    refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with staged(target) as folder:  # first: what it removes may be what fills the disk
        need, free = sum(piece.bytes for piece in pieces), shutil.disk_usage(target.parent).free
        if free < need:
            raise DataError(
                f"{target}: {need / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free; free space, or choose "
                "another place: --to FOLDER."
            )
        for piece in pieces:
            path = folder / piece.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if piece.source is not None:
                shutil.copyfile(piece.source, path)
            elif piece.text is not None:
                path.write_text(piece.text, encoding="utf-8")
        if any(piece.cast for piece in pieces):
            _cast(source, folder, dtype)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            path.chmod(0o644)
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        refuse_existing(target)
        folder.rename(target)


def refuse_existing(target: Path) -> None:
    """DataError where something has the export's name."""
    if target.exists() or target.is_symlink():
        raise DataError(f"{target} exists; remove it, or choose another place: --to FOLDER.")


def _cast(source: Path, folder: Path, dtype: str) -> None:
    import torch

    from sparring.stages.train.files.safetensors_writer import ShardWriter, read, tensors_of

    to = getattr(torch, dtype)
    writer = ShardWriter(folder)
    for name, path in tensors_of(source).items():
        tensor = read(path, name)
        writer.add(name, tensor.to(to) if tensor.is_floating_point() else tensor)
    writer.close()
