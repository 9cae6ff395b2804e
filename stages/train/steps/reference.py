"""The step `reference`: log-probs of each pair's chosen and rejected response under the policy that sampled them.

One shard per part of `samples`. The forward pass is the trainer's own; rows are scored in passes of similar length,
whose make-up depends on the shard alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sparring.stages import loaded
from sparring.stages.step import Job, Part, Shard
from sparring.stages.train.config import ReferenceSettings

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


class Reference:
    """Scores the pairs of a part. Inputs: `samples`, `pairs`, `policy`."""

    def __init__(self, job: Job[ReferenceSettings]) -> None:
        from sparring.stages.train.model.scorer import Scored, load_scorer, write_route

        self.job, self.scoring = job, job.settings.trainer
        policy, dtype, four_bit = job.inputs["policy"], self.scoring.dtype, job.settings.four_bit
        key = Scored(policy.digest, dtype, four_bit)

        def make() -> Any:
            return load_scorer(policy.folder(), dtype, four_bit)

        self.model = loaded.kept("scorer", (policy.root, *key), make)
        write_route(job, key, self.model.route)

    def __call__(self, shard: Shard) -> Part:
        """Score one part."""
        from sparring.stages.train.batch.rows import join_pairs
        from sparring.stages.train.model.scorer import score

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
