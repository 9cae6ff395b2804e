"""What oracles share that read a prompt with one response at a time: rows of tokens, batches, folders of models.

A row is the conversation, prompt and response, as the folder's own chat template writes it (stages/chat.py):
one BOS, nothing after the response's turn. A row that is too long is cut and flagged: what closes the turn stays, the
response loses its tail, but keeps half of the row if it needs it; what is then too much is the middle of the prompt.
The import is light: model libraries are imported by what needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sparring.stages.annotate.oracle import Duel, Messages
from sparring.stages.errors import DataError
from sparring.stages.fields import NO_BOOL
from sparring.stages.outline import check_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from sparring.stages.chat import Chat

PASS_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Of one pass, padding counted. More slow a CPU down: with rows of 500 tokens by a third, and padding is on top."""
COUNT_FROM_PAD = ("mpnet", "roberta", "xlm-roberta")
"""config.json's model_type of those whose first position is pad_token_id + 1."""
Dtype = Literal["float32", "bfloat16"]
MaxTokens = Annotated[int, Field(ge=64), NO_BOOL]
"""A template's own tokens fit into half of it."""


class Tokens(NamedTuple):
    """A prompt with a response, as a model reads it."""

    ids: list[int]
    truncated: bool
    segments: list[int] | None = None
    """Of two texts: 0 for a token of the first, 1 for one of the second; None for a conversation."""


Read = Callable[[Messages, str], Tokens]
"""Of a prompt and a response."""


def passes(lengths: Sequence[int], device: Any) -> Iterator[list[int]]:
    """Yield the rows that share a pass on a torch device."""
    return batches(lengths, PASS_TOKENS[device.type])


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield rows of like length, longest first, as many as fit into `most` tokens with their padding; at least one."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def texts(duels: Sequence[Duel]) -> tuple[list[tuple[Messages, str]], NDArray[np.intp]]:
    """Return the unique (prompt, response) of the duels, and int (n, 2): which are `first` and `second` of each."""
    places: dict[tuple[Messages, str], int] = {}
    of_duels = [[places.setdefault((d.prompt, text), len(places)) for text in (d.first, d.second)] for d in duels]
    return list(places), np.array(of_duels, dtype=np.intp).reshape(-1, 2)


def truncated(rows: Sequence[Tokens], places: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return bool (n,): whether a text of the duel was read cut."""
    cut = np.array([row.truncated for row in rows], dtype=bool)
    return cut[places[:, 0]] | cut[places[:, 1]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Tokens of a prompt and of two responses that are read together, special ones included."""

    source: int
    total: int

    def fit(self, source: int, first: int, second: int) -> tuple[int, int, int]:
        """Return how many tokens of each text are read: what a short response leaves goes to the other one."""
        source = min(source, self.source)
        left = self.total - source
        fair = left // 2
        first, second = min(first, max(fair, left - second)), min(second, max(left - fair, left - first))
        return source, first, second


def fit(prompt: int, response: int, closing: int, most: int) -> tuple[int, int]:
    """Return how many tokens are read of a prompt and of the response, if with `closing` they may be `most`."""
    prompt = min(prompt, max(most // 2, most - response - closing))
    return prompt, min(response, most - prompt - closing)


class Conversations:
    """Reads a prompt and a response as one conversation of at most `most` tokens."""

    def __init__(self, chat: Chat, most: int, folder: Path) -> None:
        self.chat, self.most, self.folder = chat, most, folder

    def __call__(self, prompt: Messages, response: str) -> Tokens:
        ids = self._ids((*prompt, ("assistant", response)))
        if len(ids) <= self.most:
            return Tokens(ids, False)
        frame = self._ids((*prompt, ("assistant", "")))
        opening = _shared(ids, frame)
        closing = min(_shared(ids[::-1], frame[::-1]), len(frame) - opening)
        kept, read = fit(opening, len(ids) - opening - closing, closing, self.most)
        return Tokens([*_ends(ids[:opening], kept), *ids[opening : opening + read], *ids[len(ids) - closing :]], True)

    def prompt(self, prompt: Messages) -> Tokens:
        """Return a prompt alone: its turns, without the response's header."""
        ids = self._ids(prompt)
        return Tokens(_ends(ids, min(len(ids), self.most)), len(ids) > self.most)

    def _ids(self, messages: Messages) -> list[int]:
        try:
            return self.chat.conversation([{"role": role, "content": text} for role, text in messages])
        except DataError as error:
            raise DataError(f"{self.folder}: {error}") from None


def pairs(tokenizer: Any, most: int) -> Read:
    """Return what reads a prompt and a response as the two texts of an encoder, of at most `most` tokens.

    The prompt is the text of its messages, each on its own line, without roles. Where both texts are too long, each
    keeps the head that fits into half of the row. Special tokens spelled in a text are read as a space, as by pairrm.
    """
    special = sorted(tokenizer.all_special_tokens, key=len)[::-1]

    def plain(text: str) -> str:
        for token in special:
            text = text.replace(token, " ")
        return text

    def read(prompt: Messages, response: str) -> Tokens:
        both = plain("\n".join(content for _, content in prompt)), plain(response)
        encoded = tokenizer(*both, verbose=False)
        truncated = len(encoded["input_ids"]) > most
        if truncated:
            encoded = tokenizer(*both, truncation="longest_first", max_length=most, verbose=False)
        return Tokens(list(encoded["input_ids"]), truncated, encoded.get("token_type_ids"))

    return read


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(f"{folder}: no tokenizer that loads ({_first_line(error)}).") from None


def load_config(folder: Path) -> Any:
    """Return the folder's configuration; DataError where it holds no model that can be read."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json; point the oracle at the folder of a model.")
    weight_files(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder / 'config.json'}: transformers does not know it ({_first_line(error)}).") from None


def weight_files(folder: Path) -> list[Path]:
    """Return the folder's *.safetensors; DataError without one."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder}: no *.safetensors; other weight formats are not read.")
    return files


def load_model(auto: Any, folder: Path, config: Any, dtype: str, device: str) -> tuple[Any, set[str], set[str]]:
    """Return a model, and the names of its weights that the folder lacks, and of the folder's that it lacks.

    A weight of another shape is a DataError. transformers' fused attention drops the soft cap of Gemma 2's attention
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
        raise DataError(f"{folder}: transformers cannot load it ({_first_line(error)}).") from None
    check_shapes(folder, report)
    return model.to(device).eval(), set(report["missing_keys"]), set(report["unexpected_keys"])


def longest(config: Any, tokenizer: Any, most: int) -> int:
    """Return `most`, or fewer tokens where the model or its tokenizer read fewer."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or most
    if text.model_type in COUNT_FROM_PAD:
        positions -= text.pad_token_id + 1
    return min(most, positions, tokenizer.model_max_length)


def padded(rows: Sequence[Tokens], pad: int, device: Any) -> dict[str, Tensor]:
    """Return the inputs of a pass, int64 (rows, longest row), filled with `pad` on the right."""
    import torch

    width = max(len(row.ids) for row in rows)

    def filled(parts: Sequence[Sequence[int]], with_: int) -> Tensor:
        return torch.tensor([[*part, *[with_] * (width - len(part))] for part in parts], device=device)

    inputs = {
        "input_ids": filled([row.ids for row in rows], pad),
        "attention_mask": filled([[1] * len(row.ids) for row in rows], 0),
    }
    segments = [row.segments for row in rows if row.segments is not None]
    return inputs | ({"token_type_ids": filled(segments, 0)} if segments else {})


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two rows have in common at their start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _ends(ids: list[int], count: int) -> list[int]:
    """Return `count` of the ids, those in the middle left out."""
    return ids[: count - count // 2] + ids[len(ids) - count // 2 :]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
