"""Published results of a recipe, as the run's configuration has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from sparring.pipeline.report.config import PublishedConfig, PublishedRow

NAMES = {0: "base", None: "iteration not stated"}


def published_of(config: Mapping[str, Any]) -> PublishedConfig | None:
    """Return the results that a configuration has, None without."""
    block = config.get("published")
    return TypeAdapter(PublishedConfig).validate_python(block) if block else None


def rows_of(published: PublishedConfig) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, LC win rate, win rate and length of each row."""
    for row in published.rows:
        yield name_of(row), f"{row.lc:.2f}", f"{row.wr:.2f}", _length(row)


def name_of(row: PublishedRow) -> str:
    """Return `base`, `iteration 2, best of 16`, or that the iteration is not stated."""
    return NAMES.get(row.iteration, f"iteration {row.iteration}") + best_of(row.best_of)


def best_of(n: int) -> str:
    """Return `, best of 16`, nothing where a policy's own responses count."""
    return f", best of {n}" if n > 1 else ""


def _length(row: PublishedRow) -> str:
    return "" if row.length is None else str(row.length)
