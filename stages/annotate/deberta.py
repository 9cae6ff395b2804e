"""DeBERTa v2 and v3 (He et al., arXiv 2006.03654, 2111.09543) for inference, equal to transformers' up to rounding.

Each layer's projections of the relative positions depend on no input: they are computed once, not for every batch as in
transformers. The last layer is computed for the wanted tokens only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
DEFAULTS = {"hidden_act": "gelu", "type_vocab_size": 0, "conv_kernel_size": 0}
"""Values of keys that config.json may lack."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of an encoder."""

    layers: int
    heads: int
    hidden: int
    buckets: int
    """Buckets of relative positions on either side."""
    farthest: int
    """Distances from this one on share the last bucket."""
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
                buckets=int(config["position_buckets"]),
                farthest=int(farthest if farthest > 0 else config["max_position_embeddings"]),
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
            "encoder.rel_embeddings.weight": (2 * self.buckets, h),
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


class Encoder:
    """An encoder on one device; `weights` under the names that transformers gives them."""

    def __init__(self, shape: Shape, weights: Mapping[str, Tensor]) -> None:
        self.shape, self.weights = shape, weights
        rel = weights["encoder.rel_embeddings.weight"]
        self.device, self.dtype = rel.device, rel.dtype
        rel = self._norm(rel[: 2 * shape.buckets], "encoder.LayerNorm")
        self.scale = 1 / math.sqrt(3 * shape.hidden // shape.heads)
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
        present = (torch.arange(longest)[None] < lengths[:, None]).to(self.device)
        x = F.embedding(ids.to(self.device), self.weights["embeddings.word_embeddings.weight"])
        x = self._norm(x, "embeddings.LayerNorm") * present[..., None]
        mask = None
        if int(lengths.min()) < longest:
            mask = torch.zeros(present.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill(~present, torch.finfo(self.dtype).min)[:, None, None]
        positions = _buckets(longest, self.shape).to(self.device)
        for i in range(self.shape.layers - 1):
            x = self._layer(i, x, x, positions, mask)
        places = wanted.to(self.device)
        chosen = x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
        return self._layer(self.shape.layers - 1, x, chosen, positions, mask, places)

    def _layer(
        self, i: int, x: Tensor, queries: Tensor, positions: Tensor, mask: Tensor | None, places: Tensor | None = None
    ) -> Tensor:
        """Return layer i at the tokens `queries` (B, n, hidden), which attend to all of x (B, length, hidden).

        places: (B, n) positions of the queries; None: they are all tokens, in order.
        """
        prefix = f"encoder.layer.{i}.attention.self"
        query = self._heads(self._linear(queries, f"{prefix}.query_proj"))
        key = self._heads(self._linear(x, f"{prefix}.key_proj"))
        value = self._heads(self._linear(x, f"{prefix}.value_proj"))
        bias = self._position_bias(i, query, key, positions, places)
        if mask is not None:
            bias = bias + mask
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        seen = seen.transpose(1, 2).flatten(2)
        layer = f"encoder.layer.{i}"
        seen = self._norm(
            self._linear(seen, f"{layer}.attention.output.dense") + queries, f"{layer}.attention.output.LayerNorm"
        )
        inner = F.gelu(self._linear(seen, f"{layer}.intermediate.dense"))
        return self._norm(self._linear(inner, f"{layer}.output.dense") + seen, f"{layer}.output.LayerNorm")

    def _position_bias(self, i: int, query: Tensor, key: Tensor, positions: Tensor, places: Tensor | None) -> Tensor:
        """Return content-to-position plus position-to-content scores (B, heads, n, length), scaled."""
        length = key.shape[2]
        low, high = int(positions[0]), int(positions[-1]) + 1  # the buckets in use
        ahead = torch.arange(length, device=self.device)
        at = ahead[None, :, None] if places is None else places[:, :, None]
        # (B or 1, 1, n, length): the bucket of query place minus key place
        index = (positions[at - ahead + length - 1] - low)[:, None]
        to_key = query @ self.keys[i][..., low:high]  # (B, heads, n, buckets)
        to_query = self.queries[i][:, low:high] @ key.transpose(-1, -2)  # (B, heads, buckets, length)
        index = index.expand(len(query), query.shape[1], -1, -1)
        return to_key.gather(3, index) + to_query.gather(2, index)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.shape.eps)

    def _heads(self, x: Tensor) -> Tensor:
        """(…, n, hidden) -> (…, heads, n, d)."""
        return x.unflatten(-1, (self.shape.heads, -1)).transpose(-2, -3)


def _buckets(length: int, shape: Shape) -> Tensor:
    """Return the row of the relative embeddings for each distance from -(length - 1) to length - 1.

    Each near distance has its own row; farther ones share rows by their logarithm, in float32 as in transformers.
    """
    distance = torch.arange(1 - length, length)
    middle = shape.buckets // 2
    far = distance.abs().clamp_min(middle)
    steps = torch.log(far / middle) / torch.log(torch.tensor((shape.farthest - 1) / middle)) * (middle - 1)
    shared = (torch.ceil(steps) + middle) * distance.sign()
    bucket = torch.where(distance.abs() <= middle, distance, shared.long())
    return (bucket + shape.buckets).clamp(0, 2 * shape.buckets - 1)
