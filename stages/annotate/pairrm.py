"""The oracle `pairrm`: PairRM (Jiang et al., arXiv 2306.02561), a DeBERTa that reads a prompt and two responses.

    [CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> first [SEP] [CLS] <|candidate2|> second [SEP]
    logit = mean over tasks of head([x_source; x_first]) - head([x_source; x_second])

x: the last layer's state at each marker; head: Linear(2H, H), tanh, Linear(H, tasks), in float32. Every pair is cut by
itself (llm-blender cuts a pair by what else is in its batch): 2048 tokens in all, the prompt at most 1224 of them; the
responses share the rest, and what a short one leaves goes to the other. A text that is too long keeps its head, as in
PairRM's training. Markers and special tokens spelled in a text are read as a space, as llm-blender reads [SEP].

Both published layouts are read, safetensors only: `llm-blender/PairRM` (its config.json names the backbone) and
`llm-blender/PairRM-hf` (its config.json is the backbone's).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from sparring.stages.annotate.deberta import Encoder, Shape
from sparring.stages.annotate.oracle import Duel, Verdicts
from sparring.stages.annotate.reader import Limits, batches, load_tokenizer, weight_files, without
from sparring.stages.errors import DataError
from sparring.stages.model_folder import header, read_json

SOURCE_MOST, CANDIDATE_MOST = 1224, 412
"""Tokens of a prompt and of a response, where config.json does not set them."""
SOURCE, FIRST, SECOND, EITHER = "<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"
BODY, HEAD = "pretrained_model.", "head_layer."
BUFFER = "position_ids"
"""Part of the names of tensors in old files that are no weights."""
V3 = {
    "relative_attention": True,
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": "p2c|c2p",
    "position_buckets": 256,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-7,
}
BACKBONES = {
    f"microsoft/deberta-v3-{size}": {
        **V3,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
    }
    for size, hidden, layers in (("xsmall", 384, 12), ("small", 768, 6), ("base", 768, 12), ("large", 1024, 24))
}
"""config.json of each backbone that a checkpoint of the first layout can name."""
TURNS = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
"""llm-blender's instruction for conversations, misspelt as in PairRM's training."""


class PairTokens(NamedTuple):
    """A prompt and two responses as the model reads them."""

    ids: list[int]
    places: tuple[int, int, int]
    """Positions of the three markers."""
    truncated: bool


class PairRM:
    """A checkpoint on one device. An oracle: no prompt of its training is known."""

    trained_on: frozenset[int] = frozenset()

    def __init__(self, folder: Path, dtype: str, device: str = "cpu") -> None:
        self.folder = folder
        shape, self.limits, self.tokenizer, self.markers = read_layout(folder)
        self.special = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
        weights: dict[str, Tensor] = {}
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as opened:
                weights |= {name: opened.get_tensor(name) for name in opened.keys() if BUFFER not in name}  # noqa: SIM118
        body = {name.removeprefix(BODY): w for name, w in weights.items() if name.startswith(BODY)}
        self.encoder = Encoder(shape, {k: w.to(device, getattr(torch, dtype)) for k, w in body.items()})
        self.head = {k.removeprefix(HEAD): w.to(device, torch.float32) for k, w in weights.items() if HEAD in k}

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Return logits and whether a text was truncated; each text is tokenized once."""
        rows = self.rows(duels)
        passes = list(batches([len(row.ids) for row in rows], self.encoder.pass_tokens()))
        logits = np.zeros(len(rows))
        if passes:  # a GPU's logits are fetched at the end: it never waits for the CPU between passes
            found = torch.cat([self.scores([rows[i] for i in one]) for one in passes])
            logits[list(chain(*passes))] = found.double().cpu()
        return Verdicts(logits, np.array([row.truncated for row in rows], dtype=bool))

    def rows(self, duels: Sequence[Duel]) -> list[PairTokens]:
        """Return each duel as the model reads it."""
        texts = [render(duel) for duel in duels]
        sources = self._ids(SOURCE, (source for source, _, _ in texts))
        responses = self._ids(FIRST, (text for _, *both in texts for text in both))
        rows = []
        for source, first, second in texts:
            parts = (sources[source], responses[first], responses[second])
            sizes = self.limits.fit(*map(len, parts))
            ids: list[int] = []
            places = []
            for part, size, marker in zip(parts, sizes, self.markers.values(), strict=True):
                places.append(len(ids) + 1)
                ids += [part[0], marker, *part[2 : size - 1], part[-1]]
            rows.append(PairTokens(ids, (places[0], places[1], places[2]), sizes != tuple(map(len, parts))))
        return rows

    def scores(self, rows: Sequence[PairTokens]) -> Tensor:
        """Return the logits (n,) of rows, in one forward pass."""
        x = self.encoder.states([row.ids for row in rows], torch.tensor([row.places for row in rows])).float()
        first, second = (self._head(torch.cat((x[:, 0], x[:, i]), -1)) for i in (1, 2))
        return (first - second).mean(-1)

    def _head(self, x: Tensor) -> Tensor:
        inner = torch.tanh(F.linear(x, self.head["1.weight"], self.head["1.bias"]))
        return F.linear(inner, self.head["4.weight"], self.head["4.bias"])

    def _ids(self, marker: str, texts: Iterable[str]) -> dict[str, list[int]]:
        """Return the tokens of each text: [CLS] marker text [SEP]."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return {}
        tokens = self.tokenizer([marker + without(self.special, text) for text in unique])["input_ids"]
        if any(ids[1] != self.markers[marker] for ids in tokens):
            raise DataError(f"{self.folder}: its tokenizer does not read {marker} as one token after a first one.")
        return dict(zip(unique, tokens, strict=True))


def render(duel: Duel) -> tuple[str, str, str]:
    """Return prompt, first and second response as PairRM reads them: conversations as llm-blender writes them."""
    system = "".join(f"{text}\n" for role, text in duel.prompt if role == "system")
    users = [text for role, text in duel.prompt if role == "user"]
    if len(users) <= 1:
        return system + "".join(users), duel.first, duel.second
    turns = "\n".join(f"USER: {text}\nAssistant: <Response {i}>" for i, text in enumerate(users, 1))
    replies = [text for role, text in duel.prompt if role == "assistant"]
    first, second = (
        "\n".join(f"<Response {i}>: {text}" for i, text in enumerate([*replies, last], 1))
        for last in (duel.first, duel.second)
    )
    return system + TURNS + turns, first, second


def _shape(config: Mapping[str, Any], folder: Path) -> tuple[Shape, Limits]:
    place = str(folder / "config.json")
    source, each = config.get("source_maxlength") or SOURCE_MOST, config.get("candidate_maxlength") or CANDIDATE_MOST
    limits = Limits(source=source, total=source + 2 * each)
    kind = config.get("ranker_type", config.get("architectures"))
    if kind == ["DebertaV2PairRM"]:
        return Shape.of(config, place), limits
    if kind != "pairranker":
        raise DataError(
            f"{place}: this is {kind}; oracle=pairrm reads a pair ranker of DeBERTa: ranker_type 'pairranker' "
            "(llm-blender/PairRM) or architecture DebertaV2PairRM (llm-blender/PairRM-hf)."
        )
    name = str(config.get("model_name"))
    backbone = Path(name) / "config.json"
    if name in BACKBONES:
        return Shape.of(BACKBONES[name], place), limits
    if not backbone.is_file():
        raise DataError(f"{place}: model_name is {name}; choose one of {', '.join(BACKBONES)}, or the folder of one.")
    return Shape.of(read_json(backbone), str(backbone)), limits


def read_layout(folder: Path) -> tuple[Shape, Limits, Any, dict[str, int]]:
    """Return sizes, limits, tokenizer and marker -> id of a checkpoint; DataError for wrong names or shapes of weights.

    The weights themselves are not read.
    """
    config = read_json(folder / "config.json")
    shape, limits = _shape(config, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([SOURCE, FIRST, SECOND, EITHER])  # those that it has stay as they are
    markers = {text: int(tokenizer.convert_tokens_to_ids(text)) for text in (SOURCE, FIRST, SECOND)}
    headers = [header(file) for file in weight_files(folder)]
    shapes = {name: tensor.shape for one in headers for name, tensor in one.items() if BUFFER not in name}
    words, inner = f"{BODY}embeddings.word_embeddings.weight", f"{BODY}encoder.layer.0.intermediate.dense.bias"
    sizes = [shapes[name][0] if shapes.get(name) else 0 for name in (words, inner)]
    h, tasks = shape.hidden, int(config.get("n_tasks", 1))
    wanted: dict[str, tuple[int, ...]] = {BODY + name: size for name, size in shape.tensors(*sizes).items()}
    wanted |= {"head_layer.1.weight": (h, 2 * h), "head_layer.1.bias": (h,)}
    wanted |= {"head_layer.4.weight": (tasks, h), "head_layer.4.bias": (tasks,)}
    for name in sorted(wanted.keys() | shapes.keys()):
        has = shapes.get(name, "missing")
        if has != wanted.get(name, "unknown"):
            raise DataError(f"{folder}: weight {name} is {has}, expected is {wanted.get(name, 'none of this name')}.")
    if sizes[0] <= max(markers.values()):
        raise DataError(
            f"{folder}: {sizes[0]} embeddings, but its tokenizer gives a marker the id {max(markers.values())}."
        )
    return shape, limits, tokenizer, markers
