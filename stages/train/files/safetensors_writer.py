"""safetensors files of a model, written as its tensors arrive and read one tensor at a time."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 4_000_000_000
"""Most bytes of tensors in a file, unless one tensor is larger; so much memory does publishing take."""


class ShardWriter:
    """Writes tensors into files of at most `limit` bytes, named as `save_pretrained` names them.

    One file is model.safetensors; several are model-00001-of-00003.safetensors ... with model.safetensors.index.json.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self.folder, self.limit = folder, limit
        self.held: dict[str, Tensor] = {}
        self.held_bytes = self.total_bytes = self.total_parameters = 0
        self.written: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a CPU tensor; writes the file before it when it does not fit any more."""
        if self.held and self.held_bytes + tensor.nbytes > self.limit:
            self._write()
        view = tensor.untyped_storage().nbytes() > tensor.nbytes
        self.held[name] = tensor.clone() if view else tensor.contiguous()
        self.held_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes
        self.total_parameters += tensor.numel()

    def close(self) -> None:
        """Write what is held, give the files their names, and write the index if there are several."""
        self._write()
        count = len(self.written)
        names = {i: f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)}
        if count == 1:
            names = {0: "model.safetensors"}
        for i, name in names.items():
            self._staged(i).rename(self.folder / name)
        if count > 1:
            sizes = {"total_parameters": self.total_parameters, "total_size": self.total_bytes}
            where = {tensor: names[i] for i, tensors in enumerate(self.written) for tensor in tensors}
            index = {"metadata": sizes, "weight_map": where}
            path = self.folder / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _staged(self, index: int) -> Path:
        return self.folder / f"writing-{index:05d}"

    def _write(self) -> None:
        try:
            save_file(self.held, self._staged(len(self.written)), metadata={"format": "pt"})
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), f"{error}") from error
        self.written.append(list(self.held))
        self.held.clear()
        self.held_bytes = 0


def tensors_of(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor in a model folder."""
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as handle:
            files.update(dict.fromkeys(handle.keys(), path))
    return files


def read(path: Path, name: str) -> Tensor:
    """Read one tensor."""
    with safe_open(path, "pt") as handle:
        tensor: Tensor = handle.get_tensor(name)
        return tensor
