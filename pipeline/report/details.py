"""What the page alone shows of runs: histograms, curves of training, prompts, and win rates between policies.

Reading it takes a pass over all samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.pipeline.report import crossplay
from sparring.pipeline.report.prompts import ShownPrompts, shown_prompts
from sparring.pipeline.report.spread import Spread, spread_of
from sparring.pipeline.runs.panel import Record, records_of
from sparring.pipeline.runs.run_history import RunHistory


@dataclass(frozen=True, kw_only=True)
class ArmDetails:
    """What the page alone shows of an arm. Keys of mappings are iterations, from 1 on."""

    spreads: Mapping[int, Spread]
    records: Mapping[int, Sequence[Record]]
    """Of each optimizer step: loss, h_w, h_l, …"""
    prompts: Mapping[int, ShownPrompts]
    scored: Mapping[str, crossplay.Cells]
    """judge -> win rates of policies against each other, from the scores of held-out responses."""


def details_of(histories: Sequence[RunHistory]) -> list[ArmDetails]:
    """Read what the page shows of every arm; what arms share is read once."""
    known: dict[tuple[str, ...], Any] = {}
    details = []
    for arm in histories:
        spreads, prompts, records = {}, {}, {}
        for t in arm.iterations:
            steps = arm.steps[t]
            read = ("sample", "score", "pairs", "calibrate")
            key = tuple(steps[label].fingerprint if label in steps else "" for label in read)
            if key not in known:
                known[key] = (spread_of(arm, t), shown_prompts(arm, t))
            spreads[t], prompts[t] = known[key]
            records[t] = list(records_of(steps, arm.store))
        details.append(
            ArmDetails(
                spreads={t: one for t, one in spreads.items() if one},
                records={t: one for t, one in records.items() if one},
                prompts={t: one for t, one in prompts.items() if one},
                scored=crossplay.scored(arm),
            )
        )
    return details
