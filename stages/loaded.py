"""The models that this process has loaded: what a worker reports of them, and those that it keeps for later steps.

A step that needs a model that is kept does not load it again. Small models stay; of the large ones (a policy, a large
judge) there is one at a time, and the one before is dropped before the next one is loaded.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from typing import NamedTuple, TypeVar

from sparring.stages.step import Input

Model = TypeVar("Model")
SMALL = 1 << 30
"""Bytes of the files of a small model, at most: a sentence encoder, a small judge; no policy counts as one."""


class Load(NamedTuple):
    """A model that was loaded."""

    model: str
    """policy engine, judge mini, encoder, scorer, trainer."""
    seconds: float


_loads: list[Load] = []
_large: dict[Hashable, object] = {}
_small: dict[Hashable, object] = {}


def is_small(models: Iterable[Input]) -> bool:
    """Return whether what is loaded from these inputs, together, is a small model."""
    return sum(file.bytes for model in models for file in model.files) <= SMALL


def load(model: str, make: Callable[[], Model]) -> Model:
    """Load a model and take note of it."""
    begun = time.monotonic()
    made = make()
    _loads.append(Load(model, time.monotonic() - begun))
    return made


def kept(model: str, key: Hashable, make: Callable[[], Model], small: bool = False) -> Model:
    """Return the model of that key: the one in memory, or a new one, which `make` loads. model: its name in `Load`."""
    models = _small if small else _large
    if (model, key) not in models:
        if not small:
            drop_large()
        models[model, key] = load(model, make)
    return models[model, key]  # type: ignore[return-value]


def drop_large() -> None:
    """Free the memory of large models; whoever uses one has let it go before."""
    if not _large:
        return
    _large.clear()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # else the C library keeps what it was given back
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def taken_note_of() -> list[Load]:
    """Return the loads since the last call."""
    loads = _loads.copy()
    _loads.clear()
    return loads
