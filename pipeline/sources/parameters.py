"""How many weights a policy has: counted in the headers of its files where they are here, else as its yaml says."""

from __future__ import annotations

from math import prod

from sparring.stages.errors import DataError
from sparring.stages.model_folder import header
from sparring.stages.step import Input


def counted(source: Input) -> int | None:
    """Return the weights in a model's safetensors files, None where there is none to be read."""
    files = [source.root / file.path for file in source.files if file.path.endswith(".safetensors")]
    try:
        return sum(prod(tensor.shape) for file in files for tensor in header(file).values()) or None
    except DataError:  # not here yet, or not what it seems
        return None
