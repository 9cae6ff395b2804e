"""What oracles share: rows of tokens, batches, and the loading of a model's folder.

A row is the conversation, prompt and response, as the folder's own chat template writes it (stages/chat.py): one BOS,
nothing after the response's turn. A row that is too long is cut and flagged as truncated. The tokens that close the
turn stay; the response loses its tail, down to half of the row; the prompt then loses its middle.
Importing this module is fast: model libraries are imported inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sparring.stages.annotate.oracle import Duel, Messages
from sparring.stages.errors import DataError, first_line
from sparring.stages.fields import NO_BOOL
from sparring.stages.outline import check_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from sparring.stages.chat import Chat

PASS_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Device type -> tokens of one forward pass, padding included. On a CPU larger passes are slower: with rows of 500
tokens by a third."""
POSITIONS_FROM_PAD = ("mpnet", "roberta", "xlm-roberta")
"""model_type of the models whose first position is pad_token_id + 1."""
Dtype = Literal["float32", "bfloat16"]
MaxTokens = Annotated[int, Field(ge=64), NO_BOOL]
"""The least leaves room for the tokens of a chat template."""


class Tokens(NamedTuple):
    """A prompt with a response, as a model reads it."""

    ids: list[int]
    truncated: bool
    segments: list[int] | None = None
    """Of two texts: 0 for a token of the first, 1 for one of the second; None for a conversation."""


Read = Callable[[Messages, str], Tokens]
"""(prompt, response) -> the row that a model reads."""


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield indices of rows of like length, longest first: as many as fit into `most` padded tokens, at least one."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def texts(duels: Sequence[Duel]) -> tuple[list[tuple[Messages, str]], NDArray[np.intp]]:
    """Return the unique (prompt, response) of the duels, and int (n, 2): the index of each duel's first and second."""
    index: dict[tuple[Messages, str], int] = {}
    of_duels = [[index.setdefault((d.prompt, text), len(index)) for text in (d.first, d.second)] for d in duels]
    return list(index), np.array(of_duels, dtype=np.intp).reshape(-1, 2)


def truncated(rows: Sequence[Tokens], of_duels: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return bool (n,): whether a text of the duel was truncated; of_duels: int (n, 2), see `texts`."""
    cut = np.array([row.truncated for row in rows], dtype=bool)
    return cut[of_duels[:, 0]] | cut[of_duels[:, 1]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most tokens of a prompt (`source`), and of a prompt with two responses (`total`), special ones included."""

    source: int
    total: int

    def fit(self, source: int, first: int, second: int) -> tuple[int, int, int]:
        """Return how many tokens of each text are read: the other response gets what a short one does not need."""
        source = min(source, self.source)
        left = self.total - source
        fair = left // 2
        first, second = min(first, max(fair, left - second)), min(second, max(left - fair, left - first))
        return source, first, second


def fit_conversation(prompt: int, response: int, closing: int, most: int) -> tuple[int, int]:
    """Return how many tokens of a prompt and of a response are read, so that with `closing` they are at most `most`."""
    prompt = min(prompt, max(most // 2, most - response - closing))
    return prompt, min(response, most - prompt - closing)


class Conversations:
    """Reads a prompt and a response as one conversation of at most `most` tokens: a `Read`."""

    def __init__(self, chat: Chat, most: int, folder: Path) -> None:
        self.chat, self.most, self.folder = chat, most, folder

    def __call__(self, prompt: Messages, response: str) -> Tokens:
        ids = self._ids((*prompt, ("assistant", response)))
        if len(ids) <= self.most:
            return Tokens(ids, False)
        frame = self._ids((*prompt, ("assistant", "")))
        opening = _shared(ids, frame)
        closing = min(_shared(ids[::-1], frame[::-1]), len(frame) - opening)
        kept, read = fit_conversation(opening, len(ids) - opening - closing, closing, self.most)
        return Tokens([*_ends(ids[:opening], kept), *ids[opening : opening + read], *ids[len(ids) - closing :]], True)

    def prompt(self, prompt: Messages) -> Tokens:
        """Return the row of a prompt alone, without the header of the response's turn."""
        ids = self._ids(prompt)
        return Tokens(_ends(ids, min(len(ids), self.most)), len(ids) > self.most)

    def _ids(self, messages: Messages) -> list[int]:
        try:
            return self.chat.conversation([{"role": role, "content": text} for role, text in messages])
        except DataError as error:
            raise DataError(f"{self.folder}: {error}") from None


class TextPairs:
    """Reads a prompt and a response as the two texts of an encoder, of at most `most` tokens: a `Read`.

    The prompt is the text of its messages, each on its own line, without roles. Where both texts are too long, each
    keeps the head that fits into half of the row. Special tokens spelled in a text are read as a space, as by pairrm.
    """

    def __init__(self, tokenizer: Any, most: int) -> None:
        self.tokenizer, self.most = tokenizer, most

    def __call__(self, prompt: Messages, response: str) -> Tokens:
        special = self.tokenizer.all_special_tokens
        both = [without(special, text) for text in ("\n".join(content for _, content in prompt), response)]
        encoded = self.tokenizer(*both, verbose=False)
        truncated = len(encoded["input_ids"]) > self.most
        if truncated:
            encoded = self.tokenizer(*both, truncation="longest_first", max_length=self.most, verbose=False)
        return Tokens(list(encoded["input_ids"]), truncated, encoded.get("token_type_ids"))


def without(special: Iterable[str], text: str) -> str:
    """Return the text with a space in place of each special token that is spelled in it, longest tokens first."""
    for token in sorted(special, key=len)[::-1]:
        text = text.replace(token, " ")
    return text


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(f"{folder}: no tokenizer that loads ({first_line(error)}).") from None


def load_config(folder: Path) -> Any:
    """Return the folder's configuration; DataError where transformers cannot read a model from the folder."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json; point the oracle at the folder of a model.")
    weight_files(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder / 'config.json'}: transformers does not know it ({first_line(error)}).") from None


def weight_files(folder: Path) -> list[Path]:
    """Return the folder's *.safetensors; DataError without one."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder}: no *.safetensors; other weight formats are not read.")
    return files


def load_model(auto: Any, folder: Path, config: Any, dtype: str, device: str) -> tuple[Any, set[str], set[str]]:
    """Return a model, the names of its weights that the folder lacks, and of the folder's weights that it lacks.

    DataError for a weight of another shape. transformers' fused attention drops the soft cap of Gemma 2's attention
    (integrations/sdpa_attention.py of 5.19 does not look at `softcap`): such a model attends eagerly.
    """
    import torch
    from safetensors import SafetensorError

    text = config.get_text_config()
    text.use_cache = False
    eager = getattr(text, "attn_logit_softcapping", None) is not None
    try:
        model, report = auto.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation="eager" if eager else None,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"{folder}: transformers cannot load it ({first_line(error)}).") from None
    check_shapes(folder, report)
    return model.to(device).eval(), set(report["missing_keys"]), set(report["unexpected_keys"])


def longest(config: Any, tokenizer: Any, most: int) -> int:
    """Return the most tokens of a row: `most`, or fewer where the model or its tokenizer reads fewer."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or most
    if text.model_type in POSITIONS_FROM_PAD:
        positions -= text.pad_token_id + 1
    return min(most, positions, tokenizer.model_max_length)


def padded(rows: Sequence[Tokens], pad: int, device: Any) -> dict[str, Tensor]:
    """Return the inputs of a forward pass, int64 (rows, longest row), padded with `pad` on the right."""
    import torch

    width = max(len(row.ids) for row in rows)

    def filled(parts: Sequence[Sequence[int]], filler: int) -> Tensor:
        return torch.tensor([[*part, *[filler] * (width - len(part))] for part in parts], device=device)

    inputs = {
        "input_ids": filled([row.ids for row in rows], pad),
        "attention_mask": filled([[1] * len(row.ids) for row in rows], 0),
    }
    segments = [row.segments for row in rows if row.segments is not None]
    return inputs | ({"token_type_ids": filled(segments, 0)} if segments else {})


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common start of two rows."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _ends(ids: list[int], count: int) -> list[int]:
    """Return `count` of the ids: half of them from the start, half from the end."""
    return ids[: count - count // 2] + ids[len(ids) - count // 2 :]
