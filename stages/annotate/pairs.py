"""The step `pairs`: preference matrix, win rates, and the chosen and the rejected response of each prompt.

Rows without a pair are dropped and counted by the first reason that holds: `oracle_trained_on_prompt`, `tie`
(all win rates equal), `capped` (the chosen or the rejected response hit max_tokens), `head_to_head` (the
chosen one loses its direct duel with the rejected one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.job import Job, Part, Shard
from stages.annotate import winrate
from stages.annotate.rows import joined, matrix, one_shard_per_part, place, ratio, rows_by_id, total

PAIRS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("n", pa.int32()),
        ("P", pa.list_(pa.float64())),
        ("win_rates", pa.list_(pa.float64())),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
    ]
)


class Pairer:
    """Picks the pairs of a part of `samples` from the same part of `scores`."""

    def __init__(self, job: Job) -> None:
        self.identity = job.identity
        self.samples, self.scores = job.inputs["samples"], job.inputs["scores"]

    def __call__(self, shard: Shard) -> Part:
        samples = rows_by_id(self.samples, shard.index, ["responses"])
        scores = rows_by_id(self.scores, shard.index, ["n_left", "n_right", "logits", "trained_on"])
        kept: list[dict[str, Any]] = []
        dropped: Counter[str] = Counter()
        stats: Counter[str] = Counter()
        for row_id, row in samples.items():
            score = joined(scores, row_id, self.scores, shard.index)
            if score["trained_on"]:
                dropped["oracle_trained_on_prompt"] += 1
                continue
            logits = _logits(score, len(row["responses"]), place(self.scores, shard.index, row_id))
            preference = preferences(logits, self.identity["win_rate"])
            rates = winrate.win_rates(preference)
            stats.update(matrix_stats(preference, row["responses"]))
            pair = winrate.extremes(rates)
            reason = "tie" if pair is None else self._reason(preference, pair, row["responses"])
            if pair is None or reason:
                dropped[reason] += 1
                continue
            kept.append(pair_row(row_id, preference, rates, pair))
            stats.update(pair_stats(preference, rates, pair, row["responses"]))
        table = pa.Table.from_pylist(kept, schema=PAIRS_SCHEMA)
        return Part(table=table, rows_in=len(samples), dropped=dict(dropped), stats=dict(stats))

    def _reason(self, preference: winrate.Array, pair: tuple[int, int], responses: list[dict[str, Any]]) -> str:
        if self.identity["capped"] == "drop" and _capped(pair, responses):
            return "capped"
        lost = self.identity["require_head_to_head"] and winrate.loses_head_to_head(preference, *pair)
        return "head_to_head" if lost else ""


def preferences(logits: winrate.Array, mode: str) -> winrate.Array:
    """P under `mode`: matrix, or aggregate_score, whose win rates order responses as their scores s do."""
    return winrate.aggregate_matrix(logits) if mode == "aggregate_score" else winrate.preference_matrix(logits)


def shards(job: Job) -> list[Shard]:
    """One shard for each part of `samples`."""
    return one_shard_per_part(job, "samples", "scores")


def finish(job: Job, tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise. Cycles and length correlation are of every judged prompt, the rest of the pairs kept."""
    pairs = sum(part["rows_out"] for part in parts)
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part["dropped"])
    return {
        "prompts": sum(part["rows_in"] for part in parts),
        "pairs": pairs,
        "dropped": dict(sorted(dropped.items())),
        "capped": int(total(parts, "capped")),
        "chosen_loses_head_to_head": int(total(parts, "head_to_head")),
        "mean_p_w": ratio(total(parts, "p_w"), pairs),
        "mean_p_l": ratio(total(parts, "p_l"), pairs),
        "cycle_rate": ratio(total(parts, "cycles"), total(parts, "triples")),
        "length_correlation": winrate.correlation(*(total(parts, name) for name in ("xy", "xx", "yy"))),
    }


def _logits(score: dict[str, Any], k: int, where: str) -> winrate.Array:
    if score["n_left"] != k or score["n_right"] != k or k < 2:
        raise DataError(
            f"{where}: scores of {score['n_left']} x {score['n_right']} responses, but the prompt has {k}; "
            "a preference needs at least 2 responses, scored against each other: make the scores again."
        )
    return matrix(score["logits"], (k, k), "oracle logit", where)


def pair_row(row_id: str, preference: winrate.Array, rates: winrate.Array, pair: tuple[int, int]) -> dict[str, Any]:
    """Return a row of PAIRS_SCHEMA; rates: (K,) win rates, pair: (chosen, rejected)."""
    return {
        "id": row_id,
        "n": len(preference),
        "P": preference.ravel(),
        "win_rates": rates,
        "chosen": pair[0],
        "rejected": pair[1],
    }


def matrix_stats(preference: winrate.Array, responses: list[dict[str, Any]]) -> dict[str, float]:
    """Return what `finish` adds up over every judged prompt."""
    lengths: NDArray[np.float64] = np.array([len(response["ids"]) for response in responses], dtype=np.float64)
    cycles, triples = winrate.cycles(preference)
    xy, xx, yy = winrate.length_moments(lengths, winrate.win_rates(preference))
    return {"cycles": float(cycles), "triples": float(triples), "xy": xy, "xx": xx, "yy": yy}


def pair_stats(
    preference: winrate.Array, rates: winrate.Array, pair: tuple[int, int], responses: list[dict[str, Any]]
) -> dict[str, float]:
    """Return what `finish` adds up over the pairs kept."""
    return {
        "p_w": float(rates[pair[0]]),
        "p_l": float(rates[pair[1]]),
        "capped": float(_capped(pair, responses)),
        "head_to_head": float(winrate.loses_head_to_head(preference, *pair)),
    }


def _capped(pair: tuple[int, int], responses: list[dict[str, Any]]) -> bool:
    return any(responses[i]["finish"] == "length" for i in pair)
