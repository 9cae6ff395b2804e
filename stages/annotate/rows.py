"""What the steps of this stage share when they read tables: rows by id, checked matrices, histograms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparring.stages.errors import DataError
from sparring.stages.step import Input, Job, Shard

BINS = 20
TABLES = ("pairs", "samples", "opponents", "scores", "embeddings")
"""Inputs that are made of the same slice of prompts, part for part."""


def shards(job: Job) -> list[Shard]:
    """Return one shard for each part of a step's tables; DataError when the tables have different numbers of parts."""
    first, *others = [job.inputs[role] for role in TABLES if role in job.inputs]
    for other in others:
        if other.n_parts != first.n_parts:
            raise DataError(
                f"{other.root}: {other.role} has {other.n_parts} parts, {first.role} has {first.n_parts}; "
                "both must be made of the same slice with the same sampler.shard_rows."
            )
    return [Shard(index=i) for i in range(first.n_parts)]


def place(source: Input, index: int, row_id: str) -> str:
    """Return where a row is, for an error message: the file of part `index`, and the row's id."""
    return f"{source.root / source.parts[index].path}, row {row_id!r}"


def rows_by_id(source: Input, index: int, columns: list[str]) -> dict[str, dict[str, Any]]:
    """Read part `index` as {id: row}; DataError when an id comes twice."""
    table = source.table(index, columns=["id", *columns])
    rows = {row["id"]: row for row in table.to_pylist()}
    if len(rows) != table.num_rows:
        twice = Counter(table.column("id").to_pylist()).most_common(1)[0][0]
        raise DataError(f"{place(source, index, twice)}: this id comes twice; make {source.role} again.")
    return rows


def pair_rows(source: Input, index: int, columns: list[str]) -> list[dict[str, Any]]:
    """Read part `index` of pairs: a prompt may have several, but none twice (DataError)."""
    rows: list[dict[str, Any]] = source.table(index, columns=["id", "chosen", "rejected", *columns]).to_pylist()
    for row, times in Counter((row["id"], row["chosen"], row["rejected"]) for row in rows).items():
        if times > 1:
            raise DataError(
                f"{place(source, index, row[0])}: its pair {row[1]}, {row[2]} comes twice; make {source.role} again."
            )
    return rows


def find_row(rows: dict[str, dict[str, Any]], row_id: str, source: Input, index: int) -> dict[str, Any]:
    """Return the row `row_id` of part `index` of `source`; DataError when `rows` lacks it."""
    if row_id not in rows:
        raise DataError(
            f"{place(source, index, row_id)}: not there, although another input of this step has it; "
            f"{source.role} was made of other prompts or with another sampler.shard_rows: make it again."
        )
    return rows[row_id]


def matrix(
    values: Sequence[float | None] | NDArray[np.float64],
    shape: tuple[int, int],
    name: str,
    where: str,
    *,
    sparse: bool = False,
) -> NDArray[np.float64]:
    """Return row-major `values` as a finite float64 matrix; DataError names the entry and its place.

    sparse: nulls are allowed, and become NaN.
    """
    absent: NDArray[np.bool_] = np.array([value is None for value in values] if sparse else np.zeros(len(values)), bool)
    flat = np.array(values, dtype=np.float64)  # null becomes NaN
    if flat.size != shape[0] * shape[1]:
        raise DataError(f"{where}: {name} has {flat.size} entries instead of {shape[0]} x {shape[1]}; make it again.")
    bad = np.flatnonzero(~np.isfinite(flat) & ~absent)
    if bad.size:
        i, j = divmod(int(bad[0]), shape[1])
        raise DataError(
            f"{where}: {name}[{i}, {j}] is {flat[bad[0]]}, not a finite number; "
            "check the model that computed it (its weights, its dtype), then run again."
        )
    return flat.reshape(shape)


def histogram(values: Iterable[NDArray[np.float64]], low: float, high: float) -> dict[str, Any]:
    """Count the values in BINS equal bins of [low, high], with their mean (null without values)."""
    counts, total = np.zeros(BINS, dtype=np.int64), 0.0
    for array in values:
        counts += np.histogram(array, bins=BINS, range=(low, high))[0]
        total += float(array.sum())
    n = int(counts.sum())
    return {"low": low, "high": high, "counts": counts.tolist(), "n": n, "mean": ratio(total, n)}


def ratio(part: float, total: float) -> float | None:
    """Return part / total, None where total is 0."""
    return part / total if total else None


def total(parts: list[dict[str, Any]], name: str) -> float:
    """Return the sum of the statistic `name` over the parts of a step."""
    return float(sum(part["stats"].get(name, 0.0) for part in parts))
