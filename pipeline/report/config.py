"""The block `published` of a preset."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """What was published of one policy, under the benchmark of its block."""

    iteration: int | None
    """0: the base; null: not stated."""
    lc: float
    """Length-controlled win rate, of 100."""
    wr: float
    """Raw win rate, of 100."""
    length: int | None
    """Mean characters of a response; null: not stated."""
    best_of: int = 1
    """Responses of which it is the best by a judge; 1: the policy's own."""


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """Published results of a preset's recipe, to print beside a run's own. In no fingerprint."""

    source: str
    benchmark: str
    note: str | None = None
    rows: tuple[PublishedRow, ...]
