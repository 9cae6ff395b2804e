"""The gates g of an iteration's prompts: of `calibrate`, and of `pairs` where it selects by gated win rates.

What spans the iteration (floor and ceil by quantile, the permutation of the control) is computed once, in a step's
`shards`, and handed to the workers, which read only the parts that they need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparring.stages.annotate import gate
from sparring.stages.annotate.config import CalibrateSettings, LinearGate, OffGate, PowerGate
from sparring.stages.annotate.embed import off_diagonals
from sparring.stages.annotate.rows import joined, matrix, place, rows_by_id
from sparring.stages.errors import ConfigError
from sparring.stages.step import Input

Prompts = Sequence[Sequence[tuple[str, int]]]
"""(id, K) of the prompts of each part."""


def payloads(settings: CalibrateSettings, embeddings: Input, prompts: Prompts) -> list[dict[str, Any]]:
    """Return what the worker of each part is told: floor and ceil, and for `permuted` whose g each prompt gets."""
    floor, ceil = thresholds(open_gate(settings), embeddings)
    sources = _sources(settings.seed, prompts) if settings.gate.name == "permuted" else [None] * len(prompts)
    return [{"floor": floor, "ceil": ceil, "sources": found} for found in sources]


def open_gate(settings: CalibrateSettings) -> LinearGate | PowerGate:
    """Return the gate of settings under which it is not off."""
    assert not isinstance(settings.gate, OffGate)
    return settings.gate


def thresholds(chosen: LinearGate | PowerGate, embeddings: Input) -> tuple[float, float]:
    """Return floor and ceil: absolute, or exact quantiles of every off-diagonal similarity of the iteration."""
    found = {"floor": chosen.floor, "ceil": chosen.ceil}
    quantiles = {"floor": chosen.floor_quantile, "ceil": chosen.ceil_quantile}
    asked = {name: q for name, q in quantiles.items() if q is not None}
    if asked:
        tables = (embeddings.table(i, columns=["similarity"]) for i in range(embeddings.n_parts))
        values = np.concatenate([row for table in tables for row in off_diagonals(table)])
        found |= {name: gate.quantile_of(values, q) for name, q in asked.items()}
    if not found["floor"] < found["ceil"]:
        said = ", ".join(f"gate.{name}_quantile={q} is the similarity {found[name]:.4f}" for name, q in asked.items())
        raise ConfigError(
            f"{said}: the floor {found['floor']:.4f} is not below the ceil {found['ceil']:.4f}; set them further apart."
        )
    return found["floor"], found["ceil"]


def prompts_of(source: Input, count: str | None = None) -> Prompts:
    """Return (id, K) of each part's prompts, once each; K is in the column `count`, else `similarity` has K x K."""
    tables = [source.table(i, columns=["id", count or "similarity"]) for i in range(source.n_parts)]
    return [list(dict.fromkeys(zip(t["id"].to_pylist(), _sizes(t, count), strict=True))) for t in tables]


class Gates:
    """Reads similarity matrices by (part, id), each part of `embeddings` once, and opens the gate on them."""

    def __init__(self, settings: CalibrateSettings, embeddings: Input) -> None:
        self.exponent = open_gate(settings).exponent
        self.embeddings = embeddings
        self.parts: dict[int, dict[str, dict[str, Any]]] = {}

    def similarity(self, part: int, row_id: str, n: int) -> NDArray[np.float64]:
        """Return s (n, n) of a prompt."""
        if part not in self.parts:
            self.parts[part] = rows_by_id(self.embeddings, part, ["similarity"])
        row = joined(self.parts[part], row_id, self.embeddings, part)
        return matrix(row["similarity"], (n, n), "similarity", place(self.embeddings, part, row_id))

    def __call__(self, told: Mapping[str, Any], part: int, row_id: str, n: int) -> NDArray[np.float64]:
        """Return g (n, n) of a prompt, or under `permuted` of the prompt whose g it gets."""
        source_part, source_id = told["sources"][row_id] if told["sources"] else (part, row_id)
        return gate.power(self.similarity(source_part, source_id, n), told["floor"], told["ceil"], self.exponent)


def _sources(seed: int, prompts: Prompts) -> list[dict[str, tuple[int, str]]]:
    """For each part, prompt -> (part, id) of the prompt whose g it gets."""
    rows = [(part, row_id, n) for part, found in enumerate(prompts) for row_id, n in found]
    dealt = gate.permuted_sources([(part, n) for part, _, n in rows], seed)
    sources: list[dict[str, tuple[int, str]]] = [{} for _ in prompts]
    for (part, row_id, _), source in zip(rows, dealt, strict=True):
        sources[part][row_id] = rows[source][:2]
    return sources


def _sizes(table: pa.Table, count: str | None) -> list[int]:
    if count:
        return [int(n) for n in table[count].to_pylist()]
    return [round(n**0.5) for n in pc.list_value_length(table["similarity"]).to_pylist()]
