"""The step `pairs`: preference matrix, win rates, and the pairs (chosen, rejected) of each prompt that are trained on.

Rows are counted in pairs: one for each prompt, or K(K-1)/2 under `all_pairs`. A pair is dropped for the first of these
reasons that applies: `oracle_trained_on_prompt`, `tie` (the win rates are equal), `capped` (one of the two responses
hit max_tokens), `head_to_head` (the chosen response loses its direct duel with the rejected one).

With `selection.values=gated` chosen and rejected are selected by gated win rates; P and the win rates that are written
are ungated, because `calibrate` gates them.

Under `win_rate=cross_fit` pairs are selected by one half of the anchors (oracle.opponents), and the win rates that are
written, of which targets are made, are those of `winrate.cross_fitted`: without the bias of what is selected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparring.stages.annotate import gate, rows, winrate
from sparring.stages.annotate.config import PairsSettings
from sparring.stages.annotate.rows import find_row, matrix, place, ratio, rows_by_id, total
from sparring.stages.annotate.winrate import Pair, candidates, first_half, preferences, select
from sparring.stages.errors import DataError
from sparring.stages.plain import null_if_nan
from sparring.stages.step import Job, Part, Shard

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


class PromptPairs(NamedTuple):
    """The pairs of one prompt."""

    preference: winrate.Array
    rates: winrate.Array | None
    """None where the oracle was trained on the prompt: its P then has no meaning."""
    pairs: list[Pair]
    dropped: dict[str, int]


class Pairer:
    """Picks the pairs of a part of `samples` from the same part of `scores`."""

    def __init__(self, job: Job[PairsSettings]) -> None:
        self.settings = job.settings
        self.samples, self.scores = job.inputs["samples"], job.inputs["scores"]
        gated = job.settings.gated
        self.gates = gate.GateReader(gated, job.inputs["embeddings"]) if gated else None

    def __call__(self, shard: Shard) -> Part:
        samples = rows_by_id(self.samples, shard.index, ["responses"])
        columns = ["n_left", "n_right", "logits", "swapped", "anchors", "trained_on"]
        scores = rows_by_id(self.scores, shard.index, columns)
        kept: list[dict[str, Any]] = []
        dropped: Counter[str] = Counter()
        stats: Counter[str] = Counter({"prompts": len(samples)})
        for row_id, row in samples.items():
            score = find_row(scores, row_id, self.scores, shard.index)
            of_prompt = self.select_pairs(score, row["responses"], shard, place(self.scores, shard.index, row_id))
            dropped.update(of_prompt.dropped)
            if of_prompt.rates is None:
                continue
            stats.update(matrix_stats(of_prompt.preference, row["responses"]))
            for pair in of_prompt.pairs:
                kept.append(pair_row(row_id, of_prompt.preference, of_prompt.rates, pair))
                stats.update(pair_stats(of_prompt.preference, of_prompt.rates, pair, row["responses"]))
        table = pa.Table.from_pylist(kept, schema=PAIRS_SCHEMA)
        rows_in = sum(candidates(self.settings.selection.by, len(row["responses"])) for row in samples.values())
        return Part(table=table, rows_in=rows_in, dropped=dict(dropped), stats=dict(stats))

    def select_pairs(
        self, score: dict[str, Any], responses: list[dict[str, Any]], shard: Shard, where: str
    ) -> PromptPairs:
        """Select the pairs of one prompt by its row of `scores`."""
        settings, k = self.settings, len(responses)
        most = candidates(settings.selection.by, k)
        preference = preferences(debiased(score, k, where), settings.win_rate)
        if score["trained_on"]:
            return PromptPairs(preference, None, [], {"oracle_trained_on_prompt": most})
        rates, seen = winrate.win_rates(preference), preference
        if settings.win_rate == "cross_fit" and score["anchors"] is not None:
            first = first_half(score["anchors"], score["id"])
            rates, seen = winrate.cross_fitted(preference, first), winrate.restricted(preference, first)
        values = winrate.win_rates(seen)
        if self.gates and settings.gated:
            g = self.gates(shard.payload, shard.index, score["id"], k)
            values = winrate.win_rates(gate.gated(seen, gate.spread(g, settings.gated.gate.scope, 0, 0)))
        selected = select(values, settings.selection.by, score["id"], settings.seed)
        kept, dropped = [], Counter[str]()
        for pair in selected:
            if settings.selection.capped == "drop" and _capped(pair, responses):
                dropped["capped"] += 1
            elif settings.selection.require_head_to_head and winrate.loses_head_to_head(preference, *pair):
                dropped["head_to_head"] += 1
            else:
                kept.append(pair)
        dropped += Counter(tie=most - len(selected))
        return PromptPairs(preference, rates, kept, dict(dropped))


def shards(job: Job[PairsSettings]) -> list[Shard]:
    """Return one shard for each part of `samples`; its payload is the gate's where gated win rates select the pairs."""
    plain, gated = rows.shards(job), job.settings.gated
    if not gated:
        return plain
    embeddings = job.inputs["embeddings"]
    payloads = gate.payloads(gated, embeddings, gate.prompt_sizes(embeddings))
    return [Shard(index=s.index, payload=payload) for s, payload in zip(plain, payloads, strict=True)]


def finish(job: Job[PairsSettings], tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise."""
    return summary(parts, cross_fit=job.settings.win_rate == "cross_fit")


def summary(parts: list[dict[str, Any]], cross_fit: bool) -> dict[str, Any]:
    """Return the figures: cycles and length correlation over all scored prompts, the rest over the pairs kept."""
    pairs = sum(part["rows_out"] for part in parts)
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part["dropped"])
    return {
        "prompts": int(total(parts, "prompts")),
        "pairs": pairs,
        "dropped": dict(sorted(dropped.items())),
        "capped": int(total(parts, "capped")),
        "chosen_loses_head_to_head": int(total(parts, "head_to_head")),
        **({"cross_fit": True} if cross_fit else {}),
        "mean_p_w": ratio(total(parts, "p_w"), pairs),
        "mean_p_l": ratio(total(parts, "p_l"), pairs),
        **_shape(parts),
        "shards": [{"pairs": part["rows_out"], **_shape([part])} for part in parts],
    }


def _shape(parts: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the share of triples that are cycles, and the correlation of win rate with length."""
    return {
        "cycle_rate": ratio(total(parts, "cycles"), total(parts, "triples")),
        "length_correlation": winrate.correlation(*(total(parts, name) for name in ("xy", "xx", "yy"))),
    }


def debiased(score: dict[str, Any], k: int, where: str) -> winrate.Array:
    """Return the debiased logits L (K, K) of a row of `scores` in self mode, NaN where two responses did not meet.

    where: names the row in an error.
    """
    anchors, n_right = score["anchors"], score["n_right"]
    if score["n_left"] != k or n_right != (k if anchors is None else len(anchors)) or k < 2:
        raise DataError(
            f"{where}: scores of {score['n_left']} x {n_right} responses, but the prompt has {k}; "
            "a preference needs at least 2 responses, scored against each other: make the scores again."
        )
    logits = matrix(score["logits"], (k, n_right), "oracle logit", where)
    swapped = matrix(score["swapped"], (k, n_right), "swapped oracle logit", where)
    unbiased = winrate.debiased_logits(logits, swapped)
    return unbiased if anchors is None else winrate.from_anchors(unbiased, anchors)


def pair_row(row_id: str, preference: winrate.Array, rates: winrate.Array, pair: Pair) -> dict[str, Any]:
    """Return a row of PAIRS_SCHEMA; rates: (K,) win rates, pair: (chosen, rejected)."""
    return {
        "id": row_id,
        "n": len(preference),
        "P": preference.ravel() if np.isfinite(preference).all() else list(map(null_if_nan, preference.ravel())),
        "win_rates": rates,
        "chosen": pair[0],
        "rejected": pair[1],
    }


def matrix_stats(preference: winrate.Array, responses: list[dict[str, Any]]) -> dict[str, float]:
    """Return the statistics that `finish` sums over the scored prompts."""
    lengths: NDArray[np.float64] = np.array([len(response["ids"]) for response in responses], dtype=np.float64)
    cycles, triples = winrate.cycles(preference)
    xy, xx, yy = winrate.length_moments(lengths, winrate.win_rates(preference))
    return {"cycles": float(cycles), "triples": float(triples), "xy": xy, "xx": xx, "yy": yy}


def pair_stats(
    preference: winrate.Array, rates: winrate.Array, pair: Pair, responses: list[dict[str, Any]]
) -> dict[str, float]:
    """Return the statistics that `finish` sums over the pairs kept."""
    return {
        "p_w": float(rates[pair[0]]),
        "p_l": float(rates[pair[1]]),
        "capped": float(_capped(pair, responses)),
        "head_to_head": float(winrate.loses_head_to_head(preference, *pair)),
    }


def _capped(pair: Pair, responses: list[dict[str, Any]]) -> bool:
    return any(responses[i]["finish"] == "length" for i in pair)
