"""The interface of oracles, which compare two responses to one prompt. The oracles themselves are in oracles/.

An oracle returns a raw logit for an **ordered** pair: > 0 means that the response shown first is better. Callers score
both orders and debias; an oracle that is antisymmetric by construction returns the negative for the swapped duel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from sparring.stages.errors import DataError

Messages = tuple[tuple[str, str], ...]
"""(role, content) messages of a conversation, plain text, not rendered through a chat template."""


class Duel(NamedTuple):
    """Two responses to one prompt, in the order in which they are shown."""

    prompt: Messages
    first: str
    second: str


class Verdicts(NamedTuple):
    """The judgements of n duels, in their order."""

    logits: np.ndarray
    """float64 (n,): > 0 where `first` is better; the raw logit of the ordered pair."""
    truncated: np.ndarray
    """bool (n,): whether the oracle truncated a text of the duel."""


class Oracle(Protocol):
    """Compares responses. `trained_on`: the `prompt_key` of every prompt that it was trained or tuned on."""

    trained_on: frozenset[int]

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Judge the duels; no verdict depends on the other duels."""
        ...


def last_user_text(messages: Sequence[tuple[str, str]]) -> str:
    """Return the text of the last user message, empty without one."""
    return next((content for role, content in reversed(messages) if role == "user"), "")


def prompt_key(messages: Sequence[tuple[str, str]]) -> int:
    """Return the signed 64-bit key of a prompt: the first 8 bytes, big endian, of a sha256.

    The hash is of the last user message (empty without one), lower-cased and trimmed, with each run of white space
    replaced by one space.
    """
    text = last_user_text(messages)
    digest = hashlib.sha256(" ".join(text.lower().split()).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def untruncated(logits: np.ndarray) -> Verdicts:
    """Return verdicts with no text truncated."""
    return Verdicts(logits, np.zeros(len(logits), dtype=bool))


def read_weights(folder: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], frozenset[int]]:
    """Return the named tensors of a small judge's folder, floats as float64, and its `trained_on` keys.

    DataError if model.safetensors, card.json or a tensor is missing, or if the card was written for other weights.
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
    weights = {name: tensors[name] for name in names}
    return {name: w.astype(np.float64) if w.dtype.kind == "f" else w for name, w in weights.items()}, trained_on
