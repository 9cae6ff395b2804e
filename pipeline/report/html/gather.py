"""What the page is made of, as plain data: the only part of it that reads artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.pipeline.config import config_of
from sparring.pipeline.diagnostics.panel import Panel, Record, records_of
from sparring.pipeline.diagnostics.rules import Fired
from sparring.pipeline.report.crossplay import Game, games
from sparring.pipeline.report.html.crossplay import Cells, crossplay
from sparring.pipeline.report.html.prompts import Chosen, read
from sparring.pipeline.report.html.spread import Spread, spread
from sparring.pipeline.report.suites import Grid
from sparring.pipeline.report.table import notes, suites_of
from sparring.pipeline.run_history import RunHistory, Steps, labels


@dataclass(frozen=True, kw_only=True)
class Story:
    """An arm, as far as it is made. Keys of dicts are iterations, from 1 on."""

    name: str
    every: dict[int, Steps]
    """With 0: what comes before the first iteration."""
    done: dict[int, Steps]
    said: dict[int, list[str]]
    """What a person should know beside the figures: what was imported, dropped or dealt again."""
    fired: list[Fired]
    """The rules of `diagnostics` that warn."""
    spreads: dict[int, Spread]
    records: dict[int, list[Record]]
    """Of each optimizer step: loss, h_w, h_l, …"""
    panels: list[Panel]
    crossplay: dict[str, Cells]
    """judge -> cells."""
    games: Mapping[str, Game]
    """judge -> intervals, cycle, exploitability and equilibrium, where all policies have met."""
    prompts: dict[int, Chosen]
    suites: Grid
    usd_per_hour: float | None
    """What its machines cost, by the run's configuration."""


def gather(arms: Sequence[RunHistory]) -> list[Story]:
    """Read every arm; what arms share is read once."""
    known: dict[tuple[str, ...], Any] = {}
    return [_story(arm, name, known) for arm, name in zip(arms, labels(arms), strict=True)]


def _story(arm: RunHistory, name: str, known: dict[tuple[str, ...], Any]) -> Story:
    spreads, prompts, records = {}, {}, {}
    for t in arm.done:
        key = tuple(arm.every[t][label].fingerprint if label in arm.every[t] else "" for label in _READ)
        if key not in known:
            known[key] = (_spread(arm, t), read(arm, t))
        spreads[t], prompts[t] = known[key]
        records[t] = list(records_of(arm.every[t], arm.store))
    return Story(
        name=name,
        every=arm.every,
        done=arm.done,
        said={t: notes(steps) for t, steps in arm.done.items()},
        fired=arm.fired,
        spreads={t: one for t, one in spreads.items() if one},
        records={t: one for t, one in records.items() if one},
        panels=arm.panels,
        crossplay=crossplay(arm),
        games=games(arm.done),
        prompts={t: one for t, one in prompts.items() if one},
        suites=suites_of(arm),
        usd_per_hour=_price(arm),
    )


def _price(arm: RunHistory) -> float | None:
    hardware = config_of(arm.folder).get("hardware")
    found = hardware.get("usd_per_hour") if isinstance(hardware, dict) else None
    return float(found) if isinstance(found, int | float) else None


_READ = ("sample", "score", "pairs", "calibrate")


def _spread(arm: RunHistory, t: int) -> Spread | None:
    pairs, made = arm.opened(t, "pairs"), arm.every[t].get("calibrate")
    gated = arm.opened(t, "calibrate") if made and made.summary.get("gate") != "off" else None
    return spread(pairs, gated, made.setting("gate.scope") if made and gated else "") if pairs else None
