"""How many weights a policy has: counted in the headers of its files where they are here, else as its yaml says."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from pipeline.job import Input

HEADER_BYTES = 100_000_000
"""More than that no header of safetensors has."""


def counted(source: Input) -> int | None:
    """Return the weights in a model's safetensors files, None where there is none to be read."""
    files = [source.root / file.path for file in source.files if file.path.endswith(".safetensors")]
    try:
        return sum(map(_in_file, files)) or None
    except (OSError, ValueError, TypeError, AttributeError, KeyError):  # not here yet, or not what it seems
        return None


def _in_file(path: Path) -> int:
    """Sum the sizes of a file's tensors: 8 bytes say how long the JSON is that names and shapes them."""
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(min(length, HEADER_BYTES)))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
