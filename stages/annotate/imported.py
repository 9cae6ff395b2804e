"""The step `pairs` of an imported file, which holds preferences beside its responses (stages/sample/imported.py).

P, chosen and rejected are the file's. The win rates are those that it published, else those of P: 3/4 and 1/4 where
chosen always beats rejected. `selection` is not read. Rows without a pair are dropped and counted: `identical` (chosen
and rejected are the same text), `tie` (equal win rates).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sparring.stages.annotate import pairs, winrate
from sparring.stages.annotate.rows import matrix, place, rows_by_id
from sparring.stages.step import Job, Part, Shard


class Importer:
    """Takes the pairs of a part of `samples`."""

    def __init__(self, job: Job) -> None:
        self.samples = job.inputs["samples"]

    def __call__(self, shard: Shard) -> Part:
        samples = rows_by_id(self.samples, shard.index, ["responses", "preference"])
        kept: list[dict[str, Any]] = []
        dropped: Counter[str] = Counter()
        stats: Counter[str] = Counter({"prompts": len(samples)})
        for row_id, row in samples.items():
            published, responses = row["preference"], row["responses"]
            shape = (len(responses), len(responses))
            preference = matrix(published["P"], shape, "P", place(self.samples, shard.index, row_id))
            rates = win_rates(preference, published["win_rates"])
            pair = published["chosen"], published["rejected"]
            stats.update(pairs.matrix_stats(preference, responses))
            if reason := no_pair(rates, pair, [response["text"] for response in responses]):
                dropped[reason] += 1
                continue
            kept.append(pairs.pair_row(row_id, preference, rates, pair))
            stats.update(pairs.pair_stats(preference, rates, pair, responses))
        table = pa.Table.from_pylist(kept, schema=pairs.PAIRS_SCHEMA)
        return Part(table=table, rows_in=len(samples), dropped=dict(dropped), stats=dict(stats))


def win_rates(preference: winrate.Array, published: list[float] | None) -> winrate.Array:
    """Return the published win rates, else those of P."""
    return np.array(published) if published else winrate.win_rates(preference)


def no_pair(rates: winrate.Array, pair: tuple[int, int], texts: Sequence[str]) -> str:
    """Return why a row has no pair, '' where it has one."""
    chosen, rejected = (texts[i].strip() for i in pair)
    if chosen == rejected:
        return "tie" if pair[0] == pair[1] else "identical"
    return "tie" if abs(rates[pair[0]] - rates[pair[1]]) <= winrate.TIE else ""


def finish(job: Job, tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary of the pairs, and the file that they were imported from."""
    return {**pairs.summary(parts, cross_fit=False), "provenance": job.inputs["samples"].summary["provenance"]}
