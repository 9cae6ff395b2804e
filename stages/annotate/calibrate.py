"""The step `calibrate`: the win-rate targets of each pair, shrunk toward 1/2 by the semantic gate (gate.py).

`gate=off` reads no embeddings; its targets are the win rates, bit for bit. Two controls show what the gate's semantics
are worth. Under `permuted` each prompt gets the g matrix of another prompt of the iteration with equally many
responses. Under `rescaled` all pairs of the iteration get the same g = 1 - c: the targets are 1/2 + c (p - 1/2), with
c = sum |p~ - 1/2| / sum |p - 1/2| over the pairs under the gate that it controls (`strength` in that gate's summary).
The sum of the shrinkage is then that of the gate, and equal for all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from sparring.stages.annotate import gate, rows
from sparring.stages.annotate.config import CalibrateSettings
from sparring.stages.annotate.rows import histogram, matrix, pair_rows, place, ratio, total
from sparring.stages.annotate.winrate import cross_fitted, first_half, win_rates
from sparring.stages.plain import null_if_nan
from sparring.stages.step import Job, Part, Shard

OWN = 1e-9
"""Win rates closer than this to those of P are those of P; others were published, and are of more responses."""
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

    def __init__(self, job: Job[CalibrateSettings]) -> None:
        self.scope = job.settings.gate.scope
        self.pairs = job.inputs["pairs"]
        off = job.settings.gate.name == "off"
        self.gates = None if off else gate.GateReader(job.settings, job.inputs["embeddings"])

    def __call__(self, shard: Shard) -> Part:
        pairs = pair_rows(self.pairs, shard.index, ["n", "P", "win_rates"])
        if self.gates is None:
            targets = [self._row(pair, np.zeros((pair["n"], pair["n"])), None, shard.index) for pair in pairs]
        else:
            targets = []
            for pair in pairs:
                prompt = shard.index, pair["id"], pair["n"]
                mean = float(gate.off_diagonal(self.gates.similarity(*prompt)).mean())
                left = shard.payload.get("left")
                g = self.gates(shard.payload, *prompt) if left is None else np.full((pair["n"],) * 2, 1 - left)
                targets.append(self._row(pair, g, mean, shard.index))
        table = pa.Table.from_pylist(targets, schema=TARGETS_SCHEMA)
        means = ("p_w", "p_l", "target_w", "target_l", "shift")
        stats = {name: float(sum(row[name] for row in targets)) for name in means} | {
            "p_pull": float(sum(abs(row["p_w"] - 0.5) + abs(row["p_l"] - 0.5) for row in targets)),
            "target_pull": float(sum(abs(row["target_w"] - 0.5) + abs(row["target_l"] - 0.5) for row in targets)),
            "similarity": float(sum(row["similarity_mean"] or 0.0 for row in targets)),
            "flips": float(sum(row["flipped"] for row in targets)),
        }
        return Part(table=table, rows_in=len(pairs), stats=stats)

    def _row(self, pair: dict[str, Any], g: gate.Array, similarity: float | None, part: int) -> dict[str, Any]:
        n, w, loser = pair["n"], pair["chosen"], pair["rejected"]
        where = place(self.pairs, part, pair["id"])
        p = matrix(pair["P"], (n, n), "P", where, sparse=True)
        full = gate.spread(g, self.scope, w, loser)
        calibrated = gate.gated(p, full)
        rates = matrix(pair["win_rates"], (1, n), "win_rates", where)[0]
        anchors = np.flatnonzero(~np.isnan(p).any(axis=1)).tolist()
        if self.pairs.summary.get("cross_fit") and len(anchors) < n:  # as the step `pairs` estimated them
            first = first_half(anchors, pair["id"])
            estimated, recalibrated = cross_fitted(p, first), cross_fitted(calibrated, first)
        else:
            estimated, recalibrated = win_rates(p), win_rates(calibrated)
        own = np.allclose(rates, estimated, rtol=0.0, atol=OWN)
        targets = np.where(full.any(axis=1), recalibrated if own else gate.gated_rates(rates, full), rates)
        return {
            "id": pair["id"],
            "chosen": w,
            "rejected": loser,
            "p_w": rates[w],
            "p_l": rates[loser],
            "p_wl": null_if_nan(p[w, loser]),
            "target_w": targets[w],
            "target_l": targets[loser],
            "target_wl": null_if_nan(calibrated[w, loser]),
            "gate_wl": full[w, loser],
            "gate": g.ravel(),
            "similarity_mean": similarity,
            "shift": gate.mean_shift(p, calibrated),
            "flipped": bool(targets[w] <= targets[loser] or targets[w] < 0.5),
        }


def shards(job: Job[CalibrateSettings]) -> list[Shard]:
    """Return one shard for each part of `pairs`, with the gate's thresholds and what spans the iteration.

    For `permuted` that is whose g each prompt gets; for `rescaled`, `left`: sum |p~ - 1/2| / sum |p - 1/2| over the
    pairs of the iteration, 1 without pairs.
    """
    plain = rows.shards(job)
    if job.settings.gate.name == "off":
        return plain
    selected = job.settings.dealt_over == "pairs"
    prompts = gate.prompt_sizes(job.inputs["pairs"], "n") if selected else gate.prompt_sizes(job.inputs["embeddings"])
    payloads = gate.payloads(job.settings, job.inputs["embeddings"], prompts)
    gated = [Shard(index=s.index, payload=payload) for s, payload in zip(plain, payloads, strict=True)]
    if gate.active_gate(job.settings).control != "rescaled":
        return gated
    gate_alone = Calibrator(job)
    stats = [gate_alone(shard).stats for shard in gated]
    before = sum(one["p_pull"] for one in stats)
    left = sum(one["target_pull"] for one in stats) / before if before else 1.0
    return [Shard(index=s.index, payload={**s.payload, "left": left}) for s in gated]


def finish(job: Job[CalibrateSettings], tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise. `strength` = sum |target - 1/2| / sum |p - 1/2| over the pairs: 1 where the gate shrinks nothing."""
    pairs = sum(part["rows_out"] for part in parts)
    means = {name: ratio(total(parts, name), pairs) for name in ("p_w", "p_l", "target_w", "target_l", "shift")}
    off = job.settings.gate.name == "off"
    active = None if off else gate.active_gate(job.settings)
    floor, ceil = gate.thresholds(active, job.inputs["embeddings"]) if active else (None, None)
    return {
        "pairs": pairs,
        "gate": job.settings.gate.name,
        "scope": job.settings.gate.scope,
        "floor": floor,
        "ceil": ceil,
        "exponent": getattr(active, "exponent", 1.0) if active else None,
        **{f"mean_{name}": value for name, value in means.items()},
        "strength": ratio(total(parts, "target_pull"), total(parts, "p_pull")),
        "similarity_mean": None if off else ratio(total(parts, "similarity"), pairs),
        "flips": int(total(parts, "flips")),
        "g": histogram((g for table in tables for g in gate.off_diagonals(table, "gate")), 0.0, 1.0),
    }
