"""Published results of a recipe, as the run's configuration has them, beside the run's own figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import TypeAdapter
from rich.table import Table

from pipeline.report.config import PublishedConfig, PublishedRow

NAMES = {0: "base", None: "iteration not stated"}


def config_of(folder: Path) -> dict[str, Any]:
    """Return the configuration that the run in `folder` wrote down, {} without one."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except (OSError, ValueError):
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def published_of(config: Mapping[str, Any]) -> PublishedConfig | None:
    """Return the results that a configuration has, None without."""
    block = config.get("published")
    return TypeAdapter(PublishedConfig).validate_python(block) if block else None


def rows_of(published: PublishedConfig) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, LC win rate, win rate and length of each row."""
    for row in published.rows:
        yield name_of(row), f"{row.lc:.2f}", f"{row.wr:.2f}", _length(row)


def name_of(row: PublishedRow) -> str:
    """Return `base`, `iteration 2`, or that it is not stated."""
    return NAMES.get(row.iteration, f"iteration {row.iteration}")


def table_of(published: PublishedConfig, ours: Mapping[str, Mapping[int, str | None]]) -> Table:
    """Return a table: a column for each published policy and each iteration of ours, a row for each figure."""
    there: dict[int | None, PublishedRow | None] = {row.iteration: row for row in published.rows}
    columns = sorted({*there, *(t for row in ours.values() for t in row)}, key=lambda t: (t is None, t or 0))
    title = f"published ({published.source}): {published.benchmark}"
    table = Table("", title=title, title_justify="left")
    for t in columns:
        table.add_column(NAMES.get(t, str(t)), justify="right")
    found = [there.get(t) for t in columns]
    table.add_row("published LC win rate, %", *(f"{row.lc:.2f}" if row else "" for row in found))
    table.add_row("published win rate, %", *(f"{row.wr:.2f}" if row else "" for row in found))
    table.add_row("published mean length", *(_length(row) if row else "" for row in found))
    for name, figures in ours.items():
        if any(figures.values()):
            table.add_row(name, *((figures.get(t) or "" if t is not None else "") for t in columns))
    return table


def _length(row: PublishedRow) -> str:
    return "" if row.length is None else str(row.length)
