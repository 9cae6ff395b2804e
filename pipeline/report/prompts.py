"""The prompts of an iteration as its artifacts have them: responses, preferences, the gate, pairs and targets.

The page shows those judged most clearly, and some drawn by their ids; `sparring inspect` shows any. Two passes over the
parts, one part in memory at a time: the first chooses, the second reads what was chosen.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparring.pipeline.runs.run_history import RunHistory, Steps
from sparring.stages.annotate import gate, pairs
from sparring.stages.annotate.config import PAIRS, PairsSettings
from sparring.stages.annotate.gates.base import OffGate
from sparring.stages.annotate.rows import matrix, place
from sparring.stages.annotate.winrate import win_rates
from sparring.stages.errors import DataError
from sparring.stages.fields import validator
from sparring.stages.step import Input, Job

WIDEST, DRAWN = 20, 20
"""Prompts of an iteration with the largest |P - 1/2|, and others drawn by the hash of their ids."""
KEPT = "pair"
"""The outcome of a prompt that has one."""
KEY = ("id", "chosen", "rejected")
"""Columns that name a pair."""
Array = NDArray[np.float64]
Row = dict[str, Any]
Place = tuple[int, str]
"""(part, id)."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt with its responses and what became of them."""

    id: str
    messages: Sequence[Row]
    responses: Sequence[Row]
    p: Array | None
    """P (K, K), None where it was not judged."""
    rates: Array | None
    """Win rates (K,)."""
    g: Array | None
    """The gate (K, K), None without one."""
    gated: Array | None
    """P~ (K, K), None without a gate."""
    pairs: Sequence[Row]
    """Rows of `pairs` with, where they were calibrated, what `calibrate` says of them."""
    dropped: Mapping[str, int] | None
    """Reason -> pairs that were dropped; None where that is not known."""

    @property
    def outcome(self) -> str:
        """`pair`, or why it has none: `tie`, `capped`, …; '' where that is not known."""
        return KEPT if self.pairs else ", ".join(sorted(self.dropped or ()))


@dataclass(frozen=True, kw_only=True)
class ShownPrompts:
    """The prompts that are shown, of how many."""

    prompts: Sequence[Prompt]
    of: int


@dataclass(frozen=True, kw_only=True)
class AnnotatedIteration:
    """The annotation of one iteration, as far as it is made."""

    history: RunHistory
    number: int

    @staticmethod
    def of(history: RunHistory, number: int | None) -> AnnotatedIteration:
        """Return iteration `number` of a run, the last one by default."""
        sampled = [t for t, steps in history.steps.items() if "sample" in steps]
        if not sampled:
            raise DataError(f"{history.folder}: nothing is sampled yet.")
        chosen = number if number is not None else max(sampled)
        if chosen not in sampled:
            known = ", ".join(map(str, sampled))
            raise DataError(f"{history.folder}: there is no iteration {chosen}; there are: {known}.")
        return AnnotatedIteration(history=history, number=chosen)

    @property
    def title(self) -> str:
        """`run mine, iteration 2`."""
        return f"run {self.history.folder.name}, iteration {self.number}"

    @property
    def steps(self) -> Steps:
        """Its manifests by label."""
        return self.history.steps[self.number]

    @cached_property
    def samples(self) -> Input:
        """The responses."""
        samples = self.artifact("sample")
        assert samples is not None
        return samples

    def artifact(self, label: str) -> Input | None:
        """Return the artifact of a step, None where it is not made."""
        return self.history.artifact(self.number, label)

    def rows(self, label: str, part: int, ids: Sequence[str]) -> Iterator[Row]:
        """Yield the rows of a step that are of these prompts; pairs may be several."""
        source = self.artifact(label)
        if source and part < source.n_parts:
            table = source.table(part)
            yield from table.filter(pc.is_in(table["id"], value_set=pc.cast(list(ids), "string"))).to_pylist()

    def find(self, name: str) -> Place:
        """Return (part, id) of the prompt whose id begins with `name`; DataError where none does, or several."""
        places = [
            (part, row_id)
            for part in range(self.samples.n_parts)
            for row_id in self.samples.table(part, columns=["id"])["id"].to_pylist()
            if row_id.startswith(name)
        ]
        if len(places) != 1:
            many = f"{len(places)} prompts have an id that begins so" if places else "no prompt has that id"
            run = self.history.folder.name
            raise DataError(f"--prompt {name}: {many} in iteration {self.number} of {run}; without it: a list.")
        return places[0]

    def prompts(self, part: int, ids: Sequence[str], judge_again: bool = False) -> Iterator[Prompt]:
        """Yield the prompts of a part. judge_again: also those with a pair, to see what was dropped of them."""
        targets = {tuple(row[name] for name in KEY): row for row in self.rows("calibrate", part, ids)}
        scope = self.steps["calibrate"].setting("gate.scope", OffGate.scope) if targets else ""
        made: dict[str, list[Row]] = {}
        for row in self.rows("pairs", part, ids):
            made.setdefault(row["id"], []).append({**row, **targets.get(tuple(row[name] for name in KEY), {})})
        for row in self.rows("sample", part, ids):
            k, of_prompt = len(row["responses"]), made.get(row["id"], [])
            judged = self._judged(part, row) if judge_again or not of_prompt else None
            p = judged.preference if judged else None
            rates = win_rates(p) if p is not None else None
            if p is None and of_prompt:
                p = matrix(of_prompt[0]["P"], (k, k), "P", "report", sparse=True)
            first = of_prompt[0] if of_prompt and of_prompt[0].get("gate") is not None else None
            g = matrix(first["gate"], (k, k), "gate", "report") if first else None
            yield Prompt(
                id=row["id"],
                messages=row["messages"],
                responses=row["responses"],
                p=p,
                rates=np.array(of_prompt[0]["win_rates"]) if of_prompt and not judged else rates,
                g=g,
                gated=after_gate(p, g, scope, first) if p is not None and first else None,
                pairs=of_prompt,
                dropped=judged.dropped if judged else None,
            )

    def _judged(self, part: int, sample: Row) -> pairs.PromptPairs | None:
        """Return what the step `pairs` makes of a prompt; None without scores, and of what another version made."""
        scores, made = list(self.rows("score", part, [sample["id"]])), self.steps.get("pairs")
        if not scores or made is None or made.imported or made.version != PAIRS.version:
            return None
        sources = {"samples": self.samples, "scores": self.artifact("score"), "embeddings": self.artifact("embed")}
        inputs = {role: source for role, source in sources.items() if source}
        recorded = {**made.identity, "selection": {"values": "win_rates", **made.identity["selection"]}}
        settings = validator(PairsSettings).validate_python(recorded)
        job = Job(
            spec=PAIRS, fingerprint="", settings=settings, inputs=inputs, out=Path(), attempt="", scratch=Path()
        )  # fmt: skip
        where = place(inputs["scores"], part, sample["id"])
        return pairs.Pairer(job).select_pairs(scores[0], sample["responses"], pairs.shards(job)[part], where)


def after_gate(p: Array, g: Array | None, scope: str, pair: Row) -> Array:
    """Return P~ (K, K) from P and the gate of a prompt's first pair; P itself without a gate."""
    return p if g is None else gate.gated(p, gate.spread(g, scope, pair["chosen"], pair["rejected"]))


def choose(samples: Input, pairs: Input | None) -> tuple[list[Place], int]:
    """Return the places of the prompts that are shown, widest |P - 1/2| first, and the number of all prompts."""
    widest: list[tuple[float, str, int]] = []
    drawn: list[tuple[int, str, int]] = []
    total = 0
    for part in range(samples.n_parts):
        ids = samples.table(part, columns=["id"])["id"].to_pylist()
        total += len(ids)
        hashes = ((int.from_bytes(hashlib.sha256(i.encode()).digest()[:8], "big"), i, part) for i in ids)
        drawn = heapq.nsmallest(WIDEST + DRAWN, [*drawn, *hashes])
        if pairs and part < pairs.n_parts:
            rows = pairs.table(part, columns=["id", "P"]).to_pylist()
            distances = {row["id"]: max(abs(p - 0.5) for p in row["P"] if p is not None) for row in rows}
            widest = heapq.nlargest(WIDEST, [*widest, *((distance, i, part) for i, distance in distances.items())])
    first = [(part, i) for _, i, part in widest]
    others = [(part, i) for _, i, part in drawn if (part, i) not in first]
    return first + others[:DRAWN], total


def shown_prompts(arm: RunHistory, t: int) -> ShownPrompts | None:
    """Return the prompts of iteration t that the page shows, None where no samples are there."""
    if arm.dropped(t, "sample"):
        return None
    samples = arm.artifact(t, "sample")
    if samples is None:
        return None
    places, total = choose(samples, arm.artifact(t, "pairs"))
    iteration, read = AnnotatedIteration(history=arm, number=t), {}
    for part in sorted({part for part, _ in places}):
        for prompt in iteration.prompts(part, [row_id for other, row_id in places if other == part]):
            read[part, prompt.id] = prompt
    return ShownPrompts(prompts=[read[one] for one in places], of=total)
