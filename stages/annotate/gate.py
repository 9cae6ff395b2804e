"""The semantic gate: win-rate targets anneal toward 1/2 as responses mean the same.

S-SPPO's supervision calibration (arXiv 2606.01561). The linear curve is secondary text, thresholds and scope
are ours.

s: (K, K) cosine similarity of the responses, symmetric, diagonal 1.
g: (K, K) in [0, 1], a curve of x = clip((s - floor) / (ceil - floor), 0, 1), one of the files in gates/.
P~[i, j] = 1/2 + (1 - G[i, j]) (P[i, j] - 1/2), and P itself, bit for bit, where G = 0. G spreads g by scope:

    pairwise   G[i, j] = g[i, j]                       P~ + P~^T = 1, sum_i p~_i = K/2
    pair       G[i, j] = g[chosen, rejected]           one g shrinks p_w and p_l alike
    row_mean   G[i, j] = mean_{k != i} g[i, k]         p~_i = 1/2 + (1 - gbar_i)(p_i - 1/2)

and p~_i = mean_j P~[i, j]. Entries shrink by different factors, so p~ may order the responses differently
from p. A published win rate may be of more responses than are there; those not there are gated as those that are:
p~_i = 1/2 + (1 - mean_{j != i} G[i, j])(p_i - 1/2), which for two responses and their own win rates is the same.

The formulas are pure functions of numpy arrays, float64. `GateReader` reads the similarities of prompts for the steps
that gate: `calibrate`, and `pairs` where it selects by gated win rates. What spans the iteration (floor and ceil by
quantile, the permutation of the control) is computed once, in a step's `shards`, and each shard's payload carries it:
workers read only the parts that they need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparring.stages.annotate.config import CalibrateSettings
from sparring.stages.annotate.gates.base import ActiveGate, Array, OffGate
from sparring.stages.annotate.rows import find_row, matrix, place, rows_by_id
from sparring.stages.errors import ConfigError
from sparring.stages.step import Input

Prompts = Sequence[Sequence[tuple[str, int]]]
"""(id, K) of the prompts of each part."""


def spread(g: Array, scope: str, chosen: int, rejected: int) -> Array:
    """The gate G of every entry of P under `scope` (pairwise, pair or row_mean)."""
    if scope == "pairwise":
        return g
    if scope == "pair":
        return np.full_like(g, g[chosen, rejected])
    if scope == "row_mean":
        others = np.where(np.eye(len(g), dtype=bool), 0.0, g).sum(axis=1) / (len(g) - 1)
        return np.repeat(others[:, None], len(g), axis=1)
    raise ValueError(f"scope {scope!r} is not pairwise, pair or row_mean")


def gated(preference: Array, gate: Array) -> Array:
    """P~ = 1/2 + (1 - G)(P - 1/2), and P unchanged where G = 0."""
    return np.where(gate == 0, preference, 0.5 + (1.0 - gate) * (preference - 0.5))


def gated_rates(rates: Array, gate: Array) -> Array:
    """p~_i = 1/2 + (1 - mean_{j != i} G[i, j])(p_i - 1/2), for win rates (K,) of more responses than the K of G."""
    others = gate[~np.eye(len(gate), dtype=bool)].reshape(len(gate), -1).mean(axis=1)
    return 0.5 + (1.0 - others) * (rates - 0.5)


def off_diagonal(matrix: Array) -> Array:
    """The entries i < j of a symmetric (K, K) matrix, row by row: each pair of responses once."""
    return matrix[np.triu_indices(len(matrix), 1)]


def off_diagonals(table: pa.Table, column: str) -> Iterator[Array]:
    """The off-diagonal entries of each row's flattened (K, K) matrix, float64."""
    for row in table.column(column).to_pylist():
        k = round(len(row) ** 0.5)
        yield off_diagonal(np.asarray(row, dtype=np.float64).reshape(k, k))


def mean_shift(preference: Array, calibrated: Array) -> float:
    """Mean |P~ - P| over the entries off the diagonal, whose own shift is 0: K(K-1), or those that met."""
    met = ~np.isnan(preference)
    return float(np.abs(calibrated - preference)[met].sum() / (met.sum() - len(preference)))


def permuted_sources(prompts: Sequence[tuple[int, int]], seed: int) -> list[int]:
    """For each prompt, the index of the prompt whose g it is given by the `permuted` control.

    prompts: (part, K) of each. Prompts of equal K are laid in a seeded order (parts shuffled, then rows in
    each part) and each takes the g of the one half a round further on: a permutation in which nobody keeps
    its own g unless it is alone with its K, and in which the prompts of one part draw on few parts, so that
    few files are read.
    """
    rng = np.random.default_rng(seed)
    parts, sizes = np.array(prompts, dtype=np.int64).reshape(-1, 2).T
    rank = rng.permutation(int(parts.max(initial=0)) + 1)
    order = np.lexsort((rng.random(len(parts)), rank[parts]))
    sources = np.arange(len(parts))
    for k in np.unique(sizes):
        group = order[sizes[order] == k]
        sources[group] = np.roll(group, -(len(group) // 2))
    return sources.tolist()


def payloads(settings: CalibrateSettings, embeddings: Input, prompts: Prompts) -> list[dict[str, Any]]:
    """Return the shard payload of each part: floor and ceil, and for `permuted` the `sources` of its prompts.

    sources: id of a prompt -> (part, id) of the prompt whose g it is given.
    """
    active = active_gate(settings)
    floor, ceil = thresholds(active, embeddings)
    if active.control != "permuted":
        return [{"floor": floor, "ceil": ceil, "sources": None} for _ in prompts]
    rows = [(part, row_id, n) for part, ids in enumerate(prompts) for row_id, n in ids]
    permuted = permuted_sources([(part, n) for part, _, n in rows], settings.seed)
    sources: list[dict[str, tuple[int, str]]] = [{} for _ in prompts]
    for (part, row_id, _), source in zip(rows, permuted, strict=True):
        sources[part][row_id] = rows[source][:2]
    return [{"floor": floor, "ceil": ceil, "sources": of_part} for of_part in sources]


def active_gate(settings: CalibrateSettings) -> ActiveGate:
    """Return the gate of settings whose gate is not `off`."""
    assert not isinstance(settings.gate, OffGate)
    return settings.gate


def thresholds(active: ActiveGate, embeddings: Input) -> tuple[float, float]:
    """Return floor and ceil: absolute, or exact quantiles of every off-diagonal similarity of the iteration."""
    values = {"floor": active.floor, "ceil": active.ceil}
    settings = {"floor": active.floor_quantile, "ceil": active.ceil_quantile}
    quantiles = {name: q for name, q in settings.items() if q is not None}
    if quantiles:
        tables = (embeddings.table(i, columns=["similarity"]) for i in range(embeddings.n_parts))
        similarities = np.concatenate([row for table in tables for row in off_diagonals(table, "similarity")])
        values |= {name: float(np.quantile(similarities, q)) for name, q in quantiles.items()}
    floor, ceil = values["floor"], values["ceil"]
    if not floor < ceil:
        causes = [f"gate.{name}_quantile={q} is the similarity {values[name]:.4f}" for name, q in quantiles.items()]
        raise ConfigError(
            f"{', '.join(causes)}: the floor {floor:.4f} is not below the ceil {ceil:.4f}; set them further apart."
        )
    return floor, ceil


def prompt_sizes(source: Input, count: str | None = None) -> Prompts:
    """Return (id, K) of each part's prompts, once each; K is in the column `count`, else `similarity` has K x K."""
    prompts = []
    for part in range(source.n_parts):
        table = source.table(part, columns=["id", count or "similarity"])
        lengths = pc.list_value_length(table["similarity"]).to_pylist() if count is None else []
        sizes = [int(n) for n in table[count].to_pylist()] if count else [round(n**0.5) for n in lengths]
        prompts.append(list(dict.fromkeys(zip(table["id"].to_pylist(), sizes, strict=True))))
    return prompts


class GateReader:
    """Reads similarity matrices by (part, id), each part of `embeddings` once, and computes the gate from them."""

    def __init__(self, settings: CalibrateSettings, embeddings: Input) -> None:
        self.gate = active_gate(settings)
        self.embeddings = embeddings
        self.parts: dict[int, dict[str, dict[str, Any]]] = {}

    def similarity(self, part: int, row_id: str, n: int) -> Array:
        """Return s (n, n) of a prompt."""
        if part not in self.parts:
            self.parts[part] = rows_by_id(self.embeddings, part, ["similarity"])
        row = find_row(self.parts[part], row_id, self.embeddings, part)
        return matrix(row["similarity"], (n, n), "similarity", place(self.embeddings, part, row_id))

    def __call__(self, payload: Mapping[str, Any], part: int, row_id: str, n: int) -> Array:
        """Return g (n, n) of a prompt; under `permuted` that of another prompt."""
        source_part, source_id = payload["sources"][row_id] if payload["sources"] else (part, row_id)
        return self.gate.g(self.similarity(source_part, source_id, n), payload["floor"], payload["ceil"])
