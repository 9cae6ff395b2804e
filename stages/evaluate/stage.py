"""The step `evaluate`: is the new policy better than the previous one, and the base, on held-out prompts?

Two judges are asked: the oracle that trained it, and a second one that training never saw.
Prompts that a judge was trained on are left out for that judge, and counted, and so are those to which the other policy
has no response (score drops them as `no_opponent`). A win rate whose interval contains 1/2 is not informative. The
alarm: the oracle rises beyond doubt while the second judge falls, so the policy may be gaming the oracle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from sparring.stages.errors import DataError
from sparring.stages.evaluate.bootstrap import alarm, informative, paired_bootstrap, prompt_win_rate
from sparring.stages.evaluate.config import EvaluateSettings
from sparring.stages.plain import null_if_nan
from sparring.stages.step import Input, Job, Part, Shard

OPPONENTS = ("previous", "single", "base")
JUDGES = ("oracle", "second")

EVALUATE_SCHEMA = pa.schema(
    [
        ("opponent", pa.string()),
        ("judge", pa.string()),
        ("win_rate", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n", pa.int32()),
        ("dropped", pa.int32()),
        ("informative", pa.bool_()),
    ]
)


class Evaluator:
    """Compares; one row per opponent and judge."""

    def __init__(self, job: Job[EvaluateSettings]) -> None:
        self.job = job

    def __call__(self, shard: Shard) -> Part:
        versus = [(opponent, judge) for opponent in opponents(self.job) for judge in JUDGES]
        ids = _ids(self.job.inputs["samples"])
        columns = []
        for opponent, judge in versus:
            scores = self.job.inputs[f"{judge}_{opponent}"]
            rates = win_rates(scores)
            if ids and not rates.keys() & set(ids):
                raise DataError(
                    f"{scores.root}: {scores.role} has none of the held-out prompts of the samples; score again."
                )
            columns.append(np.array([rates.get(i, math.nan) for i in ids], dtype=np.float64))
        values = np.stack(columns, axis=1)
        evaluate, seed = self.job.settings.evaluate, self.job.settings.seed
        means, lows, highs = paired_bootstrap(values, evaluate.resamples, evaluate.confidence, seed)
        dropped = np.isnan(values).sum(axis=0)
        rows = [
            {
                "opponent": opponent,
                "judge": judge,
                "n": len(ids) - int(dropped[c]),
                "dropped": int(dropped[c]),
                **with_interval(means[c], lows[c], highs[c]),
            }
            for c, (opponent, judge) in enumerate(versus)
        ]
        return Part(table=pa.Table.from_pylist(rows, schema=EVALUATE_SCHEMA), rows_in=len(rows))


def opponents(job: Job[EvaluateSettings]) -> list[str]:
    """Return whom the new policy met."""
    return [opponent for opponent in OPPONENTS if f"{JUDGES[0]}_{opponent}" in job.inputs]


def shards(job: Job[EvaluateSettings]) -> list[Shard]:
    """A single shard: every comparison shares its resamples."""
    return [Shard(index=0)]


def finish(job: Job[EvaluateSettings], tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise: the comparisons, and the opponents against which the alarm rings."""
    rows = [row for table in tables for row in table.to_pylist()]
    by_key = {(row["opponent"], row["judge"]): row for row in rows}
    alarms = []
    for opponent in opponents(job):
        low, rate = by_key[opponent, "oracle"]["low"], by_key[opponent, "second"]["win_rate"]
        if low is not None and rate is not None and alarm(low, rate):
            alarms.append(opponent)
    return {
        "prompts": len(_ids(job.inputs["samples"])),
        "resamples": job.settings.evaluate.resamples,
        "confidence": job.settings.evaluate.confidence,
        "comparisons": rows,
        "alarm": bool(alarms),
        "alarms": alarms,
    }


def _ids(samples: Input) -> list[str]:
    return [i for part in range(samples.n_parts) for i in samples.table(part, columns=["id"]).column("id").to_pylist()]


def win_rates(scores: Input) -> dict[str, float]:
    """Return id -> the win rate of the left policy on that held-out prompt, NaN where the judge was trained on it."""
    rates: dict[str, float] = {}
    for part in range(scores.n_parts):
        for row in scores.table(part).to_pylist():
            if row["trained_on"]:
                rates[row["id"]] = math.nan
                continue
            where = f"{scores.root / scores.parts[part].path}, row {row['id']!r}"
            logits, swapped = (np.asarray(row[name], dtype=np.float64) for name in ("logits", "swapped"))
            if not np.isfinite(logits).all() or not np.isfinite(swapped).all():
                raise DataError(f"{where}: an oracle logit is not a finite number; check the judge, then score again.")
            if not logits.size == swapped.size == row["n_left"] * row["n_right"] > 0:
                raise DataError(
                    f"{where}: {logits.size} and {swapped.size} logits for {row['n_left']} x {row['n_right']} "
                    "responses; score again."
                )
            rates[row["id"]] = prompt_win_rate(logits, swapped)
    return rates


def with_interval(win_rate: float, low: float, high: float) -> dict[str, Any]:
    """Return the columns of a win rate in the tables of `evaluate` and `crossplay`."""
    informs = informative(low, high)
    return {
        "win_rate": null_if_nan(win_rate),
        "low": null_if_nan(low),
        "high": null_if_nan(high),
        "informative": informs,
    }
