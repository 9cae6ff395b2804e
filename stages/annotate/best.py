"""Best-of-n: of the n responses to a prompt the one with the highest win rate against the others, the first of equals.

The step `best` writes `samples` with one response for each prompt, in the same parts as its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sparring.stages.annotate import pairs, winrate
from sparring.stages.annotate.config import BestSettings
from sparring.stages.annotate.rows import find_row, place, rows_by_id, total
from sparring.stages.step import Input, Job, Part, Shard

COLUMNS = ["n_left", "n_right", "logits", "swapped", "anchors"]


def chosen(samples: Input, scores: Input, part: int, mode: str) -> Iterator[tuple[str, int]]:
    """Yield (id, index of the best response) for each prompt of a part; mode: `win_rate` of the configuration."""
    scored = rows_by_id(scores, part, COLUMNS)
    for row_id, row in rows_by_id(samples, part, ["responses"]).items():
        score = find_row(scored, row_id, scores, part)
        logits = pairs.debiased(score, len(row["responses"]), place(scores, part, row_id))
        yield row_id, winrate.best(winrate.win_rates(winrate.preferences(logits, mode)))


class Chooser:
    """Keeps the best response to each prompt of a part of `samples`, by the same part of `scores`."""

    def __init__(self, job: Job[BestSettings]) -> None:
        self.mode = job.settings.win_rate
        self.samples, self.scores = job.inputs["samples"], job.inputs["scores"]

    def __call__(self, shard: Shard) -> Part:
        table = self.samples.table(shard.index)
        best = dict(chosen(self.samples, self.scores, shard.index, self.mode))
        rows = [{**row, "responses": [row["responses"][best[row["id"]]]]} for row in table.to_pylist()]
        kept: list[dict[str, Any]] = [row["responses"][0] for row in rows]
        return Part(
            table=pa.Table.from_pylist(rows, schema=table.schema),
            rows_in=len(rows),
            stats={
                "n": float(max(map(len, table["responses"].to_pylist()), default=0)),
                "length": float(sum(len(one["ids"]) for one in kept)),
                "capped": float(sum(one["finish"] == "length" for one in kept)),
                "first": float(sum(index == 0 for index in best.values())),
            },
        )


def finish(job: Job, tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise: n; of the responses kept the mean length, the share that hit max_tokens, the share at index 0."""
    prompts = sum(part["rows_out"] for part in parts)
    return {
        "n": int(max((part["stats"]["n"] for part in parts), default=0)),
        "prompts": prompts,
        "length_mean": total(parts, "length") / max(1, prompts),
        "cap_rate": total(parts, "capped") / max(1, prompts),
        "first": total(parts, "first") / max(1, prompts),
    }
