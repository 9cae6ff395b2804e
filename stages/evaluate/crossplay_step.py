"""The step `crossplay`: every policy so far against every other one, by both judges; is the game cyclic?

One row per judge and two policies, the later one first. The intervals are those of `evaluate`, a bootstrap over
prompts, the same draws for all. A prompt counts where both policies answered it, and not for a judge that was trained
on it. Where no prompt is left, the two did not play.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from sparring.stages.evaluate import crossplay
from sparring.stages.evaluate.bootstrap import informative, paired_bootstrap
from sparring.stages.evaluate.config import EvaluateSettings
from sparring.stages.evaluate.crossplay import Array
from sparring.stages.evaluate.stage import JUDGES, null, win_rates
from sparring.stages.step import Job, Part, Shard

CROSSPLAY_SCHEMA = pa.schema(
    [
        ("judge", pa.string()),
        ("policy", pa.int32()),
        ("opponent", pa.int32()),
        ("win_rate", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n", pa.int32()),
        ("informative", pa.bool_()),
    ]
)


def role(judge: str, policy: int, opponent: int) -> str:
    """Return the input that says how π_policy fares against π_opponent: `oracle_03_01`."""
    return f"{judge}_{policy:02d}_{opponent:02d}"


class Crossplay:
    """Compares all pairs of policies."""

    def __init__(self, job: Job[EvaluateSettings]) -> None:
        self.job = job

    def __call__(self, shard: Shard) -> Part:
        played = [_named(name) for name in sorted(self.job.inputs)]
        found = [win_rates(self.job.inputs[role(*one)]) for one in played]
        ids = list(dict.fromkeys(i for rates in found for i in rates))
        values = np.array([[rates.get(i, np.nan) for rates in found] for i in ids]).reshape(len(ids), len(found))
        evaluate, seed = self.job.settings.evaluate, self.job.settings.seed
        means, lows, highs = paired_bootstrap(values, evaluate.resamples, evaluate.confidence, seed)
        counts = (~np.isnan(values)).sum(axis=0)
        rows = [
            {
                **dict(zip(("judge", "policy", "opponent"), one, strict=True)),
                "win_rate": null(means[c]),
                "low": null(lows[c]),
                "high": null(highs[c]),
                "n": int(counts[c]),
                "informative": informative(lows[c], highs[c]),
            }
            for c, one in enumerate(played)
        ]
        return Part(table=pa.Table.from_pylist(rows, schema=CROSSPLAY_SCHEMA), rows_in=len(rows))


def finish(job: Job[EvaluateSettings], tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise: for each judge the matrix and what it says of the game; null where two policies did not play."""
    rows = [row for table in tables for row in table.to_pylist()]
    return {
        "policies": 1 + max(row["policy"] for row in rows),
        "resamples": job.settings.evaluate.resamples,
        "confidence": job.settings.evaluate.confidence,
        "judges": {judge: game([row for row in rows if row["judge"] == judge]) for judge in JUDGES},
    }


def game(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what one judge's rows say: W with its intervals, cycles, exploitability, an equilibrium of the set.

    `cycle` is by point estimate; in `cycle_beyond_doubt` every interval lies above 1/2. `average` is the uniform mix.
    """
    n, played = 1 + max(row["policy"] for row in rows), [(row["policy"], row["opponent"]) for row in rows]
    mean, low, high = (np.array([row[name] for row in rows], dtype=np.float64) for name in ("win_rate", "low", "high"))
    wins = crossplay.matrix(n, played, mean, mean)
    lows = crossplay.matrix(n, played, low, high)
    exploited, by = crossplay.exploitability(wins)
    mixture = crossplay.equilibrium(wins)
    return {
        "win_rates": _plain(wins),
        "low": _plain(lows),
        "high": _plain(crossplay.matrix(n, played, high, low)),
        "cycle": crossplay.cycle(crossplay.beats(wins)),
        "cycle_beyond_doubt": crossplay.cycle(crossplay.beats(lows)),
        "exploitability": exploited.tolist(),
        "exploited_by": by.tolist(),
        "average_exploitability": _mixed(wins, np.full(n, 1 / n)),
        "mixture": None if mixture is None else mixture.tolist(),
        "mixture_exploitability": _mixed(wins, mixture),
        "duality_gap": None if mixture is None else crossplay.duality_gap(wins, mixture),
    }


def _mixed(wins: Array, mixture: Array | None) -> float | None:
    return None if mixture is None else null(crossplay.mixed_exploitability(wins, mixture))


def _named(name: str) -> tuple[str, int, int]:
    judge, policy, opponent = name.split("_")
    return judge, int(policy), int(opponent)


def _plain(values: Array) -> list[list[float | None]]:
    return [[null(value) for value in row] for row in values]
