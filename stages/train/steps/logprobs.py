"""The step `logprobs`: log-probs of all responses of `samples` under a policy, whichever policy gave them.

Under the policy that gave them and under another one they show how far the two are apart: the mean over responses of
log pi(y) - log pi'(y) estimates KL(pi || pi') in nats a response, without bias where they were sampled at T = 1 and
top_p = 1. The forward pass is the trainer's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from sparring.stages import loaded
from sparring.stages.step import Job, Part, Shard
from sparring.stages.train.config import ReferenceSettings
from sparring.stages.train.steps.reference import shards

__all__ = ["Scorer", "finish", "shards"]

SCHEMA = pa.schema([("id", pa.string()), ("response", pa.int32()), ("logprob", pa.float64()), ("tokens", pa.int32())])
PAIRS = pa.schema([("id", pa.string()), ("chosen", pa.int32()), ("rejected", pa.int32())])


class Scorer:
    """Scores the responses of a part. Inputs: `samples`, `policy`."""

    def __init__(self, job: Job[ReferenceSettings]) -> None:
        from sparring.stages.train.model.scorer import Scored, load_scorer

        self.samples, self.scoring = job.inputs["samples"], job.settings.trainer
        policy = job.inputs["policy"]
        self.model = loaded.kept(
            "scorer",
            (policy.root, *Scored(policy.digest, self.scoring.dtype, four_bit=False)),
            lambda: load_scorer(policy.folder(), self.scoring.dtype),
        )

    def __call__(self, shard: Shard) -> Part:
        """Score one part: counted are responses."""
        from sparring.stages.train.batch.rows import join_pairs
        from sparring.stages.train.model.scorer import score

        samples = self.samples.table(shard.index, ["id", "prompt_ids", "responses"])
        each = pa.Table.from_pylist(
            [
                {"id": name, "chosen": i, "rejected": i}  # every response as a pair of it with itself
                for name, responses in zip(samples["id"].to_pylist(), samples["responses"].to_pylist(), strict=True)
                for i in range(len(responses))
            ],
            schema=PAIRS,
        )
        rows, too_long = join_pairs(samples, each, self.scoring.max_length, self.scoring.truncate)
        rows = [replace(row, rejected=[]) for row in rows]  # the forward pass takes pairs: beside each response nothing
        records = [
            {"id": row.id, "response": row.pair[0], "logprob": z, "tokens": len(row.chosen)}
            for row, (z, _) in zip(rows, score(self.model, rows), strict=True)
        ]
        return Part(
            table=pa.Table.from_pylist(records, schema=SCHEMA),
            rows_in=each.num_rows,
            dropped={"too_long": too_long} if too_long else {},
            stats={"tokens": float(sum(row.tokens for row in rows))},
        )


def finish(job: Job, tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the number of responses and their mean log-prob in nats, null without any."""
    rows = [row for table in tables for row in table.to_pylist()]
    mean = sum(row["logprob"] for row in rows) / len(rows) if rows else None
    return {"responses": len(rows), "mean_logprob": mean}
