"""A small judge's folder: model.safetensors and card.json, which must belong together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparring.stages.errors import DataError


def read_weights(folder: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], frozenset[int]]:
    """Return the named tensors, floats as float64, and the `trained_on` keys.

    DataError if a file or a tensor is missing, or if the card was written for other weights.
    """
    from safetensors.numpy import load

    model, card = folder / "model.safetensors", folder / "card.json"
    for path in (model, card):
        if not path.is_file():
            raise DataError(f"{path}: missing; point the oracle at a judge folder, or run scripts.train_judges.")
    content = model.read_bytes()
    if json.loads(card.read_text(encoding="utf-8")).get("sha256") != hashlib.sha256(content).hexdigest():
        raise DataError(f"{card}: its sha256 is not that of {model.name}; restore the folder or train the judge again.")
    tensors = load(content)
    missing = sorted({*names, "trained_on"} - set(tensors))
    if missing:
        raise DataError(
            f"{model}: has no tensor {', '.join(missing)}; train the judge again with scripts.train_judges."
        )
    trained_on = frozenset(int(key) for key in tensors["trained_on"])
    return {name: widened(tensors[name]) for name in names}, trained_on


def widened(tensor: np.ndarray) -> np.ndarray:
    """Return a float tensor as float64, any other one as it is."""
    return tensor.astype(np.float64) if tensor.dtype.kind == "f" else tensor
