"""DeBERTa v2 and v3 (He et al., arXiv 2006.03654, 2111.09543) for inference, equal to transformers' up to rounding.

Each layer's projections of the relative positions depend on no input: they are computed once, not for every batch as in
transformers. The last layer is computed for the wanted tokens only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sparring.stages.annotate import disentangled
from sparring.stages.annotate.disentangled import Buckets, Relative
from sparring.stages.annotate.reader import PASS_TOKENS
from sparring.stages.errors import DataError

SUPPORTED = {
    "relative_attention": True,
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "norm_rel_ebd": "layer_norm",
    "hidden_act": "gelu",
    "conv_kernel_size": 0,
}
"""Keys of config.json and the only supported values: those of DeBERTa v3 and of models made from it."""
FREE_SHARE = 0.8
"""Of a GPU's free memory that a forward pass may take; the rest is for fragments and kernels' workspaces."""
DEFAULTS = {"hidden_act": "gelu", "type_vocab_size": 0, "conv_kernel_size": 0}
"""Values of keys that config.json may lack."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of an encoder."""

    layers: int
    heads: int
    hidden: int
    buckets: Buckets
    """Of relative positions."""
    eps: float

    @staticmethod
    def of(config: Mapping[str, Any], where: str) -> Shape:
        """Return the sizes in a config.json; DataError for a variant that is not supported, or a missing size."""
        for key, wanted in SUPPORTED.items():
            value = config.get(key, DEFAULTS.get(key))
            if value != wanted:
                raise DataError(f"{where}: {key} is {value!r}; of DeBERTa only {wanted!r} is supported, as in v3.")
        kinds = config.get("pos_att_type")
        if sorted(kinds.split("|") if isinstance(kinds, str) else kinds or ()) != ["c2p", "p2c"]:
            raise DataError(f"{where}: pos_att_type is {kinds!r}; of DeBERTa only 'p2c|c2p' is supported, as in v3.")
        try:
            farthest = config.get("max_relative_positions", -1)
            return Shape(
                layers=int(config["num_hidden_layers"]),
                heads=int(config["num_attention_heads"]),
                hidden=int(config["hidden_size"]),
                buckets=Buckets(
                    each=int(config["position_buckets"]),
                    farthest=int(farthest if farthest > 0 else config["max_position_embeddings"]),
                ),
                eps=float(config["layer_norm_eps"]),
            )
        except KeyError as error:
            raise DataError(
                f"{where}: {error.args[0]} is missing; this is not the config.json of a DeBERTa v2 or v3."
            ) from None

    def tensors(self, vocabulary: int, inner: int) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every weight."""
        h = self.hidden
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (vocabulary, h),
            "embeddings.LayerNorm.weight": (h,),
            "embeddings.LayerNorm.bias": (h,),
            "encoder.rel_embeddings.weight": (2 * self.buckets.each, h),
            "encoder.LayerNorm.weight": (h,),
            "encoder.LayerNorm.bias": (h,),
        }
        parts = {
            "attention.self.query_proj": (h, h),
            "attention.self.key_proj": (h, h),
            "attention.self.value_proj": (h, h),
            "attention.output.dense": (h, h),
            "intermediate.dense": (inner, h),
            "output.dense": (h, inner),
        }
        for i in range(self.layers):
            for name, size in parts.items():
                shapes[f"encoder.layer.{i}.{name}.weight"] = size
                shapes[f"encoder.layer.{i}.{name}.bias"] = size[:1]
            for name in ("attention.output.LayerNorm", "output.LayerNorm"):
                shapes[f"encoder.layer.{i}.{name}.weight"] = shapes[f"encoder.layer.{i}.{name}.bias"] = (h,)
        return shapes


class Rows(NamedTuple):
    """What the layers of one forward pass share."""

    lengths: Tensor
    """int32 (B,)"""
    mask: Tensor | None
    """(B, 1, 1, length), added to the scores: the least number for padding; None without padding."""
    relative: Relative


class Encoder:
    """An encoder on one device; `weights` under the names that transformers gives them."""

    def __init__(self, shape: Shape, weights: Mapping[str, Tensor]) -> None:
        self.shape, self.weights = shape, weights
        rel = weights["encoder.rel_embeddings.weight"]
        self.device, self.dtype = rel.device, rel.dtype
        rel = self._norm(rel[: 2 * shape.buckets.each], "encoder.LayerNorm")
        self.scale = 1 / math.sqrt(3 * shape.hidden // shape.heads)
        self.table = disentangled.bucket_table(shape.buckets).to(self.device)
        self.looks_up = self.device.type == "cuda"
        """Whether attention looks the places up in its kernel: disentangled.py."""
        # (heads, d, 2 * buckets) and (heads, 2 * buckets, d), scaled
        self.keys, self.queries = [], []
        for prefix in (f"encoder.layer.{i}.attention.self" for i in range(shape.layers)):
            keys = self._heads(self._linear(rel, f"{prefix}.key_proj") * self.scale)
            self.keys.append(keys.transpose(-1, -2).contiguous())
            self.queries.append(self._heads(self._linear(rel, f"{prefix}.query_proj") * self.scale))

    @torch.inference_mode()
    def states(self, rows: Sequence[Sequence[int]], wanted: Tensor) -> Tensor:
        """Return the last layer's states at the positions `wanted` (B, n) of each row: (B, n, hidden).

        Rows of different lengths are padded on the right, which changes states by rounding only.
        """
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        ids = torch.zeros((len(rows), longest), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        present = self._sent(torch.arange(longest)[None] < lengths[:, None])
        x = F.embedding(self._sent(ids), self.weights["embeddings.word_embeddings.weight"])
        x = self._norm(x, "embeddings.LayerNorm") * present[..., None]
        mask = None
        if int(lengths.min()) < longest:
            mask = torch.zeros(present.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill(~present, torch.finfo(self.dtype).min)[:, None, None]
        relative = disentangled.relative_positions(longest, self.shape.buckets, self.device)
        shared = Rows(self._sent(lengths.int()), mask, relative)
        for i in range(self.shape.layers - 1):
            x = self._layer(i, x, x, shared)
        places = self._sent(wanted)
        chosen = x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
        return self._layer(self.shape.layers - 1, x, chosen, shared, places)

    def pass_tokens(self) -> int:
        """Return the most tokens of one forward pass, padding included: on CUDA as many as memory is free for."""
        if self.device.type != "cuda":
            return PASS_TOKENS[self.device.type]
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return most_tokens(torch.cuda.mem_get_info(self.device)[0] + unused, self.held_bytes(), self.shape)

    def held_bytes(self) -> int:
        """Return the bytes that a layer holds of each token on CUDA; see `held_numbers`."""
        inner = len(self.weights["encoder.layer.0.intermediate.dense.bias"])
        return held_numbers(self.shape, inner) * self.dtype.itemsize

    def _sent(self, x: Tensor) -> Tensor:
        """Return a tensor of the CPU on the device; the CPU does not wait for what a GPU has yet to do."""
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x.to(self.device)

    def _layer(self, i: int, x: Tensor, queries: Tensor, shared: Rows, places: Tensor | None = None) -> Tensor:
        """Return layer i at the tokens `queries` (B, n, hidden), which attend to all of x (B, length, hidden).

        places: (B, n) positions of the queries; None: they are all tokens, in order.
        """
        layer = f"encoder.layer.{i}"
        seen = self._linear(self._attention(i, x, queries, shared, places), f"{layer}.attention.output.dense")
        seen = self._norm(seen + queries, f"{layer}.attention.output.LayerNorm")
        inner = F.gelu(self._linear(seen, f"{layer}.intermediate.dense"))
        return self._norm(self._linear(inner, f"{layer}.output.dense") + seen, f"{layer}.output.LayerNorm")

    def _attention(self, i: int, x: Tensor, queries: Tensor, shared: Rows, places: Tensor | None) -> Tensor:
        """Return what the queries read, (B, n, hidden); the arguments are those of `_layer`."""
        prefix = f"encoder.layer.{i}.attention.self"
        query = self._heads(self._linear(queries, f"{prefix}.query_proj"))
        key = self._heads(self._linear(x, f"{prefix}.key_proj"))
        value = self._heads(self._linear(x, f"{prefix}.value_proj"))
        tables = self.keys[i], self.queries[i]
        if self.looks_up and places is None:
            seen = disentangled.looked_up(query, key, value, *tables, self.table, shared.lengths, self.scale)
        else:
            seen = disentangled.with_bias(query, key, value, *tables, shared.relative, shared.mask, places, self.scale)
        return seen.transpose(1, 2).flatten(2)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.shape.eps)

    def _heads(self, x: Tensor) -> Tensor:
        """(…, n, hidden) -> (…, heads, n, d)."""
        return x.unflatten(-1, (self.shape.heads, -1)).transpose(-2, -3)


def held_numbers(shape: Shape, inner: int) -> int:
    """Return how many numbers a layer holds of each token at most, its attention by `disentangled.looked_up`.

    While it attends: its input, query (and a copy of it), key, value and output, `hidden` each, and two scores for each
    head and bucket. Then: its input and two states, `hidden` each, and twice `inner`, the feed-forward layer's width.
    """
    return max(6 * shape.hidden + 2 * _scores(shape), 3 * shape.hidden + 2 * inner)


def most_tokens(free: int, each: int, shape: Shape) -> int:
    """Return the tokens of a forward pass on CUDA: as many of `each` bytes as `free` bytes hold, at least one.

    The kernel of `disentangled.looked_up` finds scores by numbers of 32 bits.
    """
    return max(1, min(int(FREE_SHARE * free) // each, (2**31 - 1) // _scores(shape)))


def _scores(shape: Shape) -> int:
    """Return the scores of a token with all buckets of all heads."""
    return 2 * shape.buckets.each * shape.heads
