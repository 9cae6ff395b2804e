"""The oracle: whoever says which of two responses to one prompt is better.

An oracle gives a raw logit for an **ordered** pair: > 0 means the response shown first is better. Callers
score both orders and debias; an oracle that is antisymmetric by construction simply returns the negative for
the swapped duel. This module imports no model library: `load_oracle` imports the one that is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

Messages = tuple[tuple[str, str], ...]
"""(role, content) messages of a conversation, plain text, not rendered through a chat template."""


class Duel(NamedTuple):
    """Two responses to one prompt, in the order in which they are shown."""

    prompt: Messages
    first: str
    second: str


class Oracle(Protocol):
    """Compares responses. `trained_on`: the `prompt_key` of every prompt its training or tuning has seen."""

    trained_on: frozenset[int]

    def logits(self, duels: Sequence[Duel]) -> np.ndarray:
        """Return float64 (len(duels),): > 0 where `first` is better; the raw logit of the ordered pair."""
        ...


def prompt_key(messages: Sequence[tuple[str, str]]) -> int:
    """Return the signed 64-bit key of a prompt: the first 8 bytes, big endian, of a sha256.

    Hashed is the text of the last user message, lower-cased, each run of white space made one space, trimmed.
    A conversation without a user message counts as an empty one.
    """
    text = next((content for role, content in reversed(messages) if role == "user"), "")
    digest = hashlib.sha256(" ".join(text.lower().split()).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def load_oracle(kind: str, folder: Path, encoder_folder: Path | None) -> Oracle:
    """Load the judge `kind` (mini, lexical) from its folder; `mini` also needs its sentence encoder's."""
    if kind == "mini":
        from stages.annotate.mini import MiniOracle

        if encoder_folder is None:
            raise ConfigError("oracle mini: no encoder folder; set the encoder to all-MiniLM-L6-v2.")
        return MiniOracle.load(folder, encoder_folder)
    if kind == "lexical":
        from stages.annotate.lexical import LexicalOracle

        return LexicalOracle.load(folder)
    raise ConfigError(f"oracle kind {kind!r} is unknown; choose one of: mini, lexical.")
