"""One prompt of an iteration in the terminal: what was said, who beats whom, what the gate left, which pair was made.

    sparring inspect myrun --iter 2 --prompt 9c1589889c6d7b68

Read from the artifacts alone; why a prompt has no pair is found by judging it again as the step `pairs` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.pipeline.run_history import RunHistory, Steps
from sparring.stages.annotate import gate, pairs, winrate
from sparring.stages.annotate.config import PAIRS, PairsSettings
from sparring.stages.annotate.rows import matrix, place
from sparring.stages.errors import DataError
from sparring.stages.fields import validator
from sparring.stages.plain import printable
from sparring.stages.step import Input, Job, Shard

Array = NDArray[np.float64]
Row = dict[str, Any]
LISTED = 20
"""Prompts of the list."""
TITLE = 60
"""Characters of a prompt there."""
SHOWN = 400
"""Characters of a response, unless the whole of it is asked for."""


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """The annotation of one iteration, as far as it is made."""

    history: RunHistory
    number: int

    @staticmethod
    def of(history: RunHistory, number: int | None) -> Iteration:
        """Return iteration `number` of a run, the last one by default."""
        there = [t for t, steps in history.every.items() if "sample" in steps]
        if not there:
            raise DataError(f"{history.folder}: nothing is sampled yet.")
        chosen = number if number is not None else max(there)
        if chosen not in there:
            known = ", ".join(map(str, there))
            raise DataError(f"{history.folder}: there is no iteration {chosen}; there are: {known}.")
        return Iteration(history=history, number=chosen)

    @property
    def run(self) -> str:
        """The name of its run's folder."""
        return self.history.folder.name

    @property
    def steps(self) -> Steps:
        """Its manifests by label."""
        return self.history.every[self.number]

    def opened(self, label: str) -> Input | None:
        """Return the artifact of a step, None where it is not made."""
        return self.history.opened(self.number, label)

    @cached_property
    def samples(self) -> Input:
        """The responses."""
        found = self.opened("sample")
        assert found is not None
        return found

    def place(self, name: str) -> tuple[int, str]:
        """Return (part, id) of the prompt whose id begins with `name`; DataError where none does, or several."""
        found = [
            (part, row_id)
            for part in range(self.samples.n_parts)
            for row_id in self.samples.table(part, columns=["id"])["id"].to_pylist()
            if row_id.startswith(name)
        ]
        if len(found) != 1:
            many = f"{len(found)} prompts have an id that begins so" if found else "no prompt has that id"
            raise DataError(f"--prompt {name}: {many} in iteration {self.number} of {self.run}; without it: a list.")
        return found[0]

    def row(self, label: str, part: int, row_id: str) -> Row | None:
        """Return the prompt's row of a step, None where there is none."""
        rows = self.rows(label, part, row_id)
        return rows[0] if rows else None

    def rows(self, label: str, part: int, row_id: str) -> list[Row]:
        """Return the prompt's rows of a step; those of pairs may be several."""
        source = self.opened(label)
        return [row for row in source.table(part).to_pylist() if row["id"] == row_id] if source else []

    def judged(self, part: int, row_id: str) -> pairs.Judged | None:
        """Return what the step `pairs` makes of the prompt; None without scores."""
        score, made = self.row("score", part, row_id), self.steps.get("pairs")
        sources = {"samples": self.samples, "scores": self.opened("score"), "embeddings": self.opened("embed")}
        inputs = {role: source for role, source in sources.items() if source}
        if score is None or made is None or made.imported or made.version != PAIRS.version:
            return None  # what another version made is shown as it stands
        recorded = {**made.identity, "selection": {"values": "win_rates", **made.identity["selection"]}}
        settings = validator(PairsSettings).validate_python(recorded)
        job = Job(
            spec=PAIRS, fingerprint="", settings=settings, inputs=inputs, out=Path(), attempt="", scratch=Path()
        )  # fmt: skip
        shard: Shard = pairs.shards(job)[part]
        responses = self.row("sample", part, row_id)
        assert responses is not None
        return pairs.Pairer(job).judge(score, responses["responses"], shard, place(inputs["scores"], part, row_id))


def print_list(iteration: Iteration, console: Console) -> None:
    """Print the first prompts with their ids and what became of them."""
    table = Table("id", "prompt", "responses", "pair", "p", title=_title(iteration), title_justify="left")
    shown, every = 0, sum(part.num_rows for part in _samples(iteration))
    for part, samples in enumerate(_samples(iteration)):
        made: dict[str, list[Row]] = {}
        source = iteration.opened("pairs")
        for pair in source.table(part).to_pylist() if source else []:
            made.setdefault(pair["id"], []).append(pair)
        for row in samples.slice(0, LISTED - shown).to_pylist():
            chosen = made.get(row["id"], [])
            table.add_row(
                row["id"],
                Text(" ".join(printable(row["messages"][-1]["content"])[:TITLE].split())),
                str(len(row["responses"])),
                ", ".join(f"{p['chosen']} > {p['rejected']}" for p in chosen) or ("none" if source else ""),
                ", ".join(f"{p['win_rates'][p['chosen']]:.2f} {p['win_rates'][p['rejected']]:.2f}" for p in chosen[:1]),
            )
            shown += 1
        if shown >= LISTED:
            break
    console.print(table)
    if every > shown:
        console.print(f"{every - shown:,} more; --prompt takes any id of {iteration.samples.root}", markup=False)


def print_prompt(iteration: Iteration, name: str, whole: bool, console: Console) -> None:
    """Print one prompt: its turns, responses, matrices and pairs."""
    part, row_id = iteration.place(name)
    sample = iteration.row("sample", part, row_id)
    assert sample is not None
    console.print(f"{_title(iteration)}, prompt {row_id}", style="bold", markup=False)
    for message in sample["messages"]:
        console.print(Text(printable(f"{message['role']}: {message['content']}")))
    console.print()
    k, responses = len(sample["responses"]), sample["responses"]
    made, judged = iteration.rows("pairs", part, row_id), iteration.judged(part, row_id)
    p = judged.preference if judged else _matrix(made[0]["P"], k, sparse=True) if made else None
    rates = winrate.win_rates(p) if p is not None else None
    targets, embedded = iteration.rows("calibrate", part, row_id), iteration.row("embed", part, row_id)
    g = _matrix(targets[0]["gate"], k) if targets else None
    _print_responses(responses, rates, made, whole, console)
    shown = {
        "P: row beats column": p,
        "similarity": _matrix(embedded["similarity"], k) if embedded else None,
        "gate g": g,
        "P̃": _gated(p, g, iteration, targets),
    }
    for title, values in shown.items():
        if values is not None:
            console.print(_square(title, values))
    for line in [*_verdicts(judged, made, iteration), *map(_target, targets)]:
        console.print(line, markup=False, highlight=False)


def _print_responses(
    responses: Sequence[Row], rates: Array | None, made: Sequence[Row], whole: bool, console: Console
) -> None:
    chosen, rejected = ({pair[name] for pair in made} for name in ("chosen", "rejected"))
    for i, response in enumerate(responses):
        rate = "" if rates is None else f", p = {rates[i]:.3f}"
        roles = [name for name, those in (("chosen", chosen), ("rejected", rejected)) if i in those]
        head = f"[{i}] {' and '.join(roles).upper()}".rstrip()
        console.print(f"{head} ({len(response['ids'])} tokens, {response['finish']}{rate})", style="bold", markup=False)
        console.print(Text(printable(response["text"]) if whole else _short(response["text"], SHOWN)))
        console.print()


def _verdicts(judged: pairs.Judged | None, made: Sequence[Row], iteration: Iteration) -> Iterator[str]:
    """Yield why pairs are missing."""
    for reason, count in sorted(judged.dropped.items()) if judged else ():
        yield f"dropped: {count} {'pair' if count == 1 else 'pairs'}, {reason}"
    if "pairs" not in iteration.steps:
        yield "no pairs yet: run again"
    elif judged is None and not made:
        yield "no pair: the file that was imported gave none, or it was dropped"


def _target(row: Row) -> str:
    """Return what was trained on: p and the target of both, and their duel."""
    duel = "" if row["p_wl"] is None else f"; P[w,l] {row['p_wl']:.3f} -> {row['target_wl']:.3f}"
    flipped = "; the gate turned the pair around" if row["flipped"] else ""
    return (
        f"pair {row['chosen']} > {row['rejected']}: chosen p {row['p_w']:.3f} -> target {row['target_w']:.3f}, "
        f"rejected {row['p_l']:.3f} -> {row['target_l']:.3f}, gate {row['gate_wl']:.3f}{duel}{flipped}"
    )


def _gated(p: Array | None, g: Array | None, iteration: Iteration, targets: Sequence[Row]) -> Array | None:
    if p is None or g is None:
        return None
    pair = targets[0]["chosen"], targets[0]["rejected"]
    return gate.gated(p, gate.spread(g, iteration.steps["calibrate"].setting("gate.scope"), *pair))


def _square(title: str, values: Array) -> Table:
    table = Table("", *map(str, range(len(values))), title=title, title_justify="left", box=None)
    for i, row in enumerate(values):
        table.add_row(str(i), *("" if np.isnan(value) else f"{value:.2f}" for value in row))
    return table


def _matrix(values: Sequence[float | None], k: int, *, sparse: bool = False) -> Array:
    return matrix(values, (k, k), "entry", "inspect", sparse=sparse)


def _samples(iteration: Iteration) -> Iterator[Any]:
    for part in range(iteration.samples.n_parts):
        yield iteration.samples.table(part, columns=["id", "messages", "responses"])


def _title(iteration: Iteration) -> str:
    return f"run {iteration.run}, iteration {iteration.number}"


def _short(text: str, most: int) -> str:
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[:most]} … ({len(shown) - most:,} more characters)"
