"""The step `reference`: log-probs of each pair's chosen and rejected response under the policy that sampled them.

One shard per part of `samples`. The forward pass is the trainer's own; rows are scored in passes of similar length,
whose make-up depends on the shard alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sparring.stages.step import Job, Part, Shard
from sparring.stages.train.config import ReferenceSettings

if TYPE_CHECKING:
    from sparring.stages.train.batch.collate import Row
    from sparring.stages.train.model.forward import Bound

log = logging.getLogger(__name__)
PASS_TOKENS = 2048
"""Most tokens of a forward pass, padding included."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        ("chosen_logprob", pa.float64()),
        ("rejected_logprob", pa.float64()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
    ]
)


def load_scorer(folder: Path, dtype: str, four_bit: bool = False) -> Bound:
    """Return the policy in a folder with fp32 weights, bound to score responses in `dtype`, on the GPU if any.

    How it is scored was checked against its own forward; where that is not the fastest way, a warning is logged.
    """
    import torch

    from sparring.stages.train.model.adapter import load_base
    from sparring.stages.train.model.scorer import settle

    model = load_base(folder, four_bit)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bound = settle(model.eval().to(device), dtype)
    if bound.route.why:
        log.warning(bound.route.why)
    return bound


def score(model: Bound, rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Return (z_w, z_l) of each row, in the order of the rows."""
    import torch

    from sparring.stages.train.batch.collate import collate
    from sparring.stages.train.model.forward import forward

    scores: list[tuple[float, float]] = [(0.0, 0.0)] * len(rows)
    device, limit, flat = next(model.parameters()).device, model.shared_up_to, model.flat
    apart = [row.tokens if flat else 2 * row.length for row in rows]
    sizes = [row.shared_length if row.length <= limit else size for row, size in zip(rows, apart, strict=True)]
    for indices in passes(sizes):
        batch = collate([rows[i] for i in indices], (), "mean", limit, flat)
        with torch.no_grad():
            z, _ = forward(model, {name: tensor.to(device) for name, tensor in batch.items()})
        for i, z_w, z_l in zip(indices, *z.view(2, -1).tolist(), strict=True):
            scores[i] = (z_w, z_l)
    return scores


def passes(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield indices of pairs of similar size in tokens, at most PASS_TOKENS per pass, at least one pair."""
    current: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        if current and (len(current) + 1) * sizes[i] > PASS_TOKENS:
            yield current
            current = []
        current.append(i)
    if current:
        yield current


class Reference:
    """Scores the pairs of a part. Inputs: `samples`, `pairs`, `policy`."""

    def __init__(self, job: Job[ReferenceSettings]) -> None:
        self.job = job
        self.scoring = job.settings.trainer
        self.model = load_scorer(job.inputs["policy"].folder(), self.scoring.dtype, job.settings.four_bit)

    def __call__(self, shard: Shard) -> Part:
        """Score one part."""
        from sparring.stages.train.batch.collate import join_pairs

        samples = self.job.inputs["samples"].table(shard.index, ["id", "prompt_ids", "responses"])
        pairs = self.job.inputs["pairs"].table(shard.index, ["id", "chosen", "rejected"])
        rows, too_long = join_pairs(samples, pairs, self.scoring.max_length, self.scoring.truncate)
        scores = score(self.model, rows)
        records = [
            {
                "id": row.id,
                "chosen": row.pair[0],
                "rejected": row.pair[1],
                "chosen_logprob": z_w,
                "rejected_logprob": z_l,
                "chosen_tokens": len(row.chosen),
                "rejected_tokens": len(row.rejected),
            }
            for row, (z_w, z_l) in zip(rows, scores, strict=True)
        ]
        return Part(
            table=pa.Table.from_pylist(records, schema=SCHEMA),
            rows_in=pairs.num_rows,
            dropped={"too_long": too_long} if too_long else {},
            stats={
                "tokens": float(sum(row.tokens for row in rows)),
                "truncated": float(sum(row.truncated for row in rows)),
            },
        )


def shards(job: Job) -> list[Shard]:
    """One shard per part of the samples."""
    return [Shard(index=index) for index in range(job.inputs["samples"].n_parts)]


def finish(job: Job, tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean log-probs in nats over all pairs, and of how many a response was cut."""
    rows = [row for table in tables for row in table.to_pylist()]
    names = ("chosen_logprob", "rejected_logprob", "chosen_tokens", "rejected_tokens")
    means = {f"mean_{name}": sum(row[name] for row in rows) / max(1, len(rows)) for name in names}
    truncated = int(sum(part["stats"]["truncated"] for part in parts))
    return {"pairs": len(rows), "truncated": truncated, **means}
