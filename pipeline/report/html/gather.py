"""What the page is made of, as plain data: the only part of it that reads artifacts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.job import Input
from pipeline.report.arms import Arm, labels
from pipeline.report.html.crossplay import Cells, crossplay
from pipeline.report.html.prompts import Chosen, read
from pipeline.report.html.spread import Spread, spread
from pipeline.report.table import Steps

Record = dict[str, Any]
"""One optimizer step of training: loss, h_w, h_l, …"""


@dataclass(frozen=True, kw_only=True)
class Story:
    """An arm, as far as it is made. Keys of dicts are iterations, from 1 on."""

    name: str
    every: dict[int, Steps]
    """With 0: what comes before the first iteration."""
    done: dict[int, Steps]
    spreads: dict[int, Spread]
    records: dict[int, list[Record]]
    crossplay: dict[str, Cells]
    """judge -> cells."""
    prompts: dict[int, Chosen]


def gather(arms: Sequence[Arm]) -> list[Story]:
    """Read every arm; what arms share is read once."""
    known: dict[tuple[str, ...], Any] = {}
    return [_story(arm, name, known) for arm, name in zip(arms, labels(arms), strict=True)]


def _story(arm: Arm, name: str, known: dict[tuple[str, ...], Any]) -> Story:
    spreads, prompts, records = {}, {}, {}
    for t in arm.done:
        key = tuple(arm.every[t][label].fingerprint if label in arm.every[t] else "" for label in _READ)
        if key not in known:
            known[key] = (_spread(arm, t), read(arm, t))
        spreads[t], prompts[t] = known[key]
        records[t] = training(arm.opened(t, "train"))
    return Story(
        name=name,
        every=arm.every,
        done=arm.done,
        spreads={t: one for t, one in spreads.items() if one},
        records={t: one for t, one in records.items() if one},
        crossplay=crossplay(arm),
        prompts={t: one for t, one in prompts.items() if one},
    )


_READ = ("sample", "score", "pairs", "calibrate")


def _spread(arm: Arm, t: int) -> Spread | None:
    pairs, made = arm.opened(t, "pairs"), arm.every[t].get("calibrate")
    gated = arm.opened(t, "calibrate") if made and made.summary.get("gate") != "off" else None
    return spread(pairs, gated, made.identity["scope"] if made and gated else "") if pairs else None


def training(train: Input | None) -> list[Record]:
    """Return the records of the optimizer steps, in order."""
    if train is None or "metrics.jsonl" not in {file.name for file in train.files}:
        return []
    with train.file("metrics.jsonl").open() as lines:
        records = [json.loads(line) for line in lines]
    return [record for record in records if "step" in record]
