"""The rows of a benchmark, shown as a table that names the machine, and written as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from sparring.pipeline.execution.ray_cluster import hardware
from sparring.pipeline.report.terminal import stdout_console
from sparring.pipeline.store.files import check_target, write_text
from sparring.stages.errors import SparringError

MFU = "% of peak"
LEAST = ("tokens/s", "pairs/s", MFU)
"""Units of which more is better; of all others an aim is the most that there may be."""


@dataclass(frozen=True)
class Row:
    """One number. With a `baseline`, `ratio` is value / its value, and the aim is of the ratio."""

    case: str
    metric: str
    value: float
    unit: str
    baseline: str | None = None
    ratio: float | None = None
    aim: float | None = None


def with_json(description: str) -> argparse.ArgumentParser:
    """Return a parser with the option that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, a list of objects")
    return parser


def parse(parser: argparse.ArgumentParser, smallest: Mapping[str, Any]) -> argparse.Namespace:
    """Parse the command line; a --json file that cannot be written is refused before anything is measured.

    smallest: the defaults under --smallest.
    """
    parser.add_argument(
        "--smallest", action="store_true", help="tiny random models, the least work: does every part run here?"
    )
    if parser.parse_known_args()[0].smallest:
        parser.set_defaults(**smallest)
    arguments = parser.parse_args()
    try:
        if arguments.json:
            check_target(arguments.json, "--json")
    except SparringError as error:
        parser.error(str(error))
    return arguments


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """Print the rows as a table that names the machine."""
    found = hardware()
    gpus = f"{found['gpus']} GPUs" if found["gpus"] else "no GPU"
    place = f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB, {gpus}, Python {found['python']}"
    table = Table("case", "metric", "value", "baseline", "ratio", "aim", title=title, caption=place)
    for row in rows:
        table.add_row(
            row.case,
            row.metric,
            f"{number(row.value)} {row.unit}",
            row.baseline or "",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.aim is None else f"{'>=' if row.unit in LEAST else '<'} {row.aim:g}",
        )
    stdout_console().print(table)


def write_rows(rows: Sequence[Row], file: Path | None) -> None:
    """Write the rows as JSON, if a file is named; it is never half-written."""
    if file:
        write_text(file, json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def number(value: float) -> str:
    """Return a value with as many digits as mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
