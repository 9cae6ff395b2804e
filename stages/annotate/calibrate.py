"""The step `calibrate`: the win-rate targets of each pair, shrunk toward 1/2 by the semantic gate (gate.py).

`gate=off` reads no embeddings and hands the win rates on bit for bit. `permuted` is the control of the gate:
each prompt gets the g matrix of another prompt of the iteration with equally many responses: same weights, no
semantics. What spans the iteration (the quantile floor, the permutation) is computed once, in `shards`, and
handed to the workers, which read only the parts that they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.job import Input, Job, Part, Shard
from stages.annotate import gate
from stages.annotate.embed import off_diagonals
from stages.annotate.rows import (
    histogram,
    joined,
    matrix,
    one_shard_per_part,
    place,
    ratio,
    rows_by_id,
    total,
)
from stages.annotate.winrate import win_rates

OWN = 1e-9
"""Win rates this close to those of P are those of P; others were published and are of more responses."""
TARGETS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        *((name, pa.float64()) for name in ("p_w", "p_l", "p_wl", "target_w", "target_l", "target_wl", "gate_wl")),
        ("gate", pa.list_(pa.float64())),
        ("similarity_mean", pa.float64()),
        ("shift", pa.float64()),
        ("flipped", pa.bool_()),
    ]
)


class Calibrator:
    """Gates the targets of a part of `pairs`."""

    def __init__(self, job: Job) -> None:
        self.identity = job.identity
        self.pairs = job.inputs["pairs"]
        self.embeddings = None if job.identity["name"] == "off" else job.inputs["embeddings"]

    def __call__(self, shard: Shard) -> Part:
        pairs = list(rows_by_id(self.pairs, shard.index, ["n", "P", "win_rates", "chosen", "rejected"]).values())
        if self.embeddings is None:
            rows = [self._row(pair, np.zeros((pair["n"], pair["n"])), None, shard.index) for pair in pairs]
        else:
            own = Similarities(self.embeddings)
            sources = shard.payload["sources"] or [[shard.index, pair["id"]] for pair in pairs]
            rows = []
            for pair, (part, row_id) in zip(pairs, sources, strict=True):
                g = gate.linear(own(part, row_id, pair["n"]), shard.payload["floor"], self.identity["ceil"])
                mean = float(gate.off_diagonal(own(shard.index, pair["id"], pair["n"])).mean())
                rows.append(self._row(pair, g, mean, shard.index))
        table = pa.Table.from_pylist(rows, schema=TARGETS_SCHEMA)
        return Part(table=table, rows_in=len(pairs), stats=_stats(rows))

    def _row(self, pair: dict[str, Any], g: gate.Array, similarity: float | None, part: int) -> dict[str, Any]:
        n, w, loser = pair["n"], pair["chosen"], pair["rejected"]
        where = place(self.pairs, part, pair["id"])
        p = matrix(pair["P"], (n, n), "P", where)
        full = gate.spread(g, self.identity["scope"], w, loser)
        calibrated = gate.gated(p, full)
        rates = matrix(pair["win_rates"], (1, n), "win_rates", where)[0]
        own = np.allclose(rates, win_rates(p), rtol=0.0, atol=OWN)
        targets = np.where(full.any(axis=1), win_rates(calibrated) if own else gate.gated_rates(rates, full), rates)
        return {
            "id": pair["id"],
            "chosen": w,
            "rejected": loser,
            "p_w": rates[w],
            "p_l": rates[loser],
            "p_wl": p[w, loser],
            "target_w": targets[w],
            "target_l": targets[loser],
            "target_wl": calibrated[w, loser],
            "gate_wl": full[w, loser],
            "gate": g.ravel(),
            "similarity_mean": similarity,
            "shift": gate.mean_shift(p, calibrated),
            "flipped": bool(targets[w] <= targets[loser] or targets[w] < 0.5),
        }


class Similarities:
    """Reads similarity matrices by (part, id), each part of `embeddings` once."""

    def __init__(self, embeddings: Input) -> None:
        self.embeddings = embeddings
        self.parts: dict[int, dict[str, dict[str, Any]]] = {}

    def __call__(self, part: int, row_id: str, n: int) -> NDArray[np.float64]:
        if part not in self.parts:
            self.parts[part] = rows_by_id(self.embeddings, part, ["similarity"])
        row = joined(self.parts[part], row_id, self.embeddings, part)
        return matrix(row["similarity"], (n, n), "similarity", place(self.embeddings, part, row_id))


def shards(job: Job) -> list[Shard]:
    """One shard for each part of `pairs`, with the floor and, for `permuted`, the sources of its g."""
    if job.identity["name"] == "off":
        return one_shard_per_part(job, "pairs")
    plain = one_shard_per_part(job, "pairs", "embeddings")
    floor = effective_floor(job)
    sources = _sources(job) if job.identity["name"] == "permuted" else [None] * len(plain)
    return [Shard(index=s.index, payload={"floor": floor, "sources": sources[s.index]}) for s in plain]


def effective_floor(job: Job) -> float:
    """`floor`, or the exact `floor_quantile` over every off-diagonal similarity of the iteration."""
    quantile = job.identity["floor_quantile"]
    if quantile is None:
        return float(job.identity["floor"])
    embeddings = job.inputs["embeddings"]
    tables = (embeddings.table(i, columns=["similarity"]) for i in range(embeddings.n_parts))
    values = np.concatenate([row for table in tables for row in off_diagonals(table)])
    floor = gate.quantile_floor(values, quantile)
    if not floor < job.identity["ceil"]:
        raise ConfigError(
            f"gate.floor_quantile={quantile}: that quantile of the similarities is {floor:.4f}, "
            f"not below gate.ceil={job.identity['ceil']}; lower the quantile or raise the ceil."
        )
    return floor


def finish(job: Job, tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise. `strength` = sum |target - 1/2| / sum |p - 1/2| over the pairs: what the gate leaves."""
    pairs = sum(part["rows_out"] for part in parts)
    means = {name: ratio(total(parts, name), pairs) for name in ("p_w", "p_l", "target_w", "target_l", "shift")}
    off = job.identity["name"] == "off"
    return {
        "pairs": pairs,
        "gate": job.identity["name"],
        "scope": job.identity["scope"],
        "floor": None if off else effective_floor(job),
        "ceil": None if off else job.identity["ceil"],
        **{f"mean_{name}": value for name, value in means.items()},
        "strength": ratio(total(parts, "target_pull"), total(parts, "p_pull")),
        "similarity_mean": None if off else ratio(total(parts, "similarity"), pairs),
        "flips": int(total(parts, "flips")),
        "g": histogram((g for table in tables for g in _gates(table)), 0.0, 1.0),
    }


def _sources(job: Job) -> list[list[tuple[int, str]]]:
    """For each part, for each of its pairs in order, (part, id) of the prompt whose g matrix it gets."""
    pairs = job.inputs["pairs"]
    tables = [pairs.table(i, columns=["id", "n"]).to_pylist() for i in range(pairs.n_parts)]
    rows = [(part, row["id"], row["n"]) for part, table in enumerate(tables) for row in table]
    dealt = gate.permuted_sources([(part, n) for part, _, n in rows], job.identity["seed"])
    sources: list[list[tuple[int, str]]] = [[] for _ in tables]
    for (part, _, _), source in zip(rows, dealt, strict=True):
        sources[part].append(rows[source][:2])
    return sources


def _stats(rows: list[dict[str, Any]]) -> dict[str, float]:
    stats = {name: float(sum(row[name] for row in rows)) for name in ("p_w", "p_l", "target_w", "target_l", "shift")}
    return {
        **stats,
        "p_pull": float(sum(abs(row["p_w"] - 0.5) + abs(row["p_l"] - 0.5) for row in rows)),
        "target_pull": float(sum(abs(row["target_w"] - 0.5) + abs(row["target_l"] - 0.5) for row in rows)),
        "similarity": float(sum(row["similarity_mean"] or 0.0 for row in rows)),
        "flips": float(sum(row["flipped"] for row in rows)),
    }


def _gates(table: pa.Table) -> Iterator[NDArray[np.float64]]:
    for row in table.column("gate").to_pylist():
        n = round(len(row) ** 0.5)
        yield gate.off_diagonal(np.asarray(row, dtype=np.float64).reshape(n, n))
