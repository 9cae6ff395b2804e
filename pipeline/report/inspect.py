"""One prompt of an iteration in the terminal: its responses, who beats whom, what the gate left, which pair was made.

    sparring inspect myrun --iter 2 --prompt 9c1589889c6d7b68

Read from the artifacts alone; why a prompt has no pair is known by judging it again as the step `pairs` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.pipeline.report.prompts import AnnotatedIteration, Prompt
from sparring.stages.annotate.rows import matrix
from sparring.stages.plain import printable

LISTED = 20
"""Prompts of the list."""
TITLE = 60
"""Characters of a prompt there."""
SHOWN = 400
"""Characters of a response, unless --full."""


def print_list(iteration: AnnotatedIteration, console: Console) -> None:
    """Print the first prompts with their ids and their pairs."""
    table = Table("id", "prompt", "responses", "pair", "p", title=iteration.title, title_justify="left")
    samples, source = iteration.samples, iteration.artifact("pairs")
    shown = every = 0
    for part in range(samples.n_parts):
        rows = samples.table(part, columns=["id", "messages", "responses"])
        every += rows.num_rows
        if shown >= LISTED:
            continue
        made: dict[str, list[dict[str, Any]]] = {}
        for pair in source.table(part).to_pylist() if source else []:
            made.setdefault(pair["id"], []).append(pair)
        for row in rows.slice(0, LISTED - shown).to_pylist():
            pairs = made.get(row["id"], [])
            table.add_row(
                row["id"],
                Text(" ".join(printable(row["messages"][-1]["content"])[:TITLE].split())),
                str(len(row["responses"])),
                ", ".join(f"{p['chosen']} > {p['rejected']}" for p in pairs) or ("none" if source else ""),
                ", ".join(f"{p['win_rates'][p['chosen']]:.2f} {p['win_rates'][p['rejected']]:.2f}" for p in pairs[:1]),
            )
            shown += 1
    console.print(table)
    if every > shown:
        console.print(f"{every - shown:,} more; --prompt takes any id of {samples.root}", markup=False)


def print_prompt(iteration: AnnotatedIteration, name: str, full: bool, console: Console) -> None:
    """Print one prompt: its turns, responses, matrices and pairs."""
    part, row_id = iteration.find(name)
    (prompt,) = iteration.prompts(part, [row_id], judge_again=True)
    console.print(f"{iteration.title}, prompt {row_id}", style="bold", markup=False)
    for message in prompt.messages:
        console.print(Text(printable(f"{message['role']}: {message['content']}")))
    console.print()
    _print_responses(prompt, full, console)
    embedded = list(iteration.rows("embed", part, [row_id]))
    k = len(prompt.responses)
    similarity = matrix(embedded[0]["similarity"], (k, k), "similarity", "inspect") if embedded else None
    matrices = {"P: row beats column": prompt.p, "similarity": similarity, "gate g": prompt.g, "P̃": prompt.gated}
    for title, values in matrices.items():
        if values is not None:
            table = Table("", *map(str, range(k)), title=title, title_justify="left", box=None)
            for i, row in enumerate(values):
                table.add_row(str(i), *("" if np.isnan(value) else f"{value:.2f}" for value in row))
            console.print(table)
    for reason, count in sorted((prompt.dropped or {}).items()):
        console.print(f"dropped: {count} {'pair' if count == 1 else 'pairs'}, {reason}", markup=False, highlight=False)
    if "pairs" not in iteration.steps:
        console.print("no pairs yet: run again", highlight=False)
    elif prompt.dropped is None and not prompt.pairs:
        console.print("no pair: the file that was imported gave none, or it was dropped", highlight=False)
    for row in prompt.pairs:
        if "target_w" in row:
            duel = "" if row["p_wl"] is None else f"; P[w,l] {row['p_wl']:.3f} -> {row['target_wl']:.3f}"
            flipped = "; the gate turned the pair around" if row["flipped"] else ""
            line = (
                f"pair {row['chosen']} > {row['rejected']}: chosen p {row['p_w']:.3f} -> target {row['target_w']:.3f}, "
                f"rejected {row['p_l']:.3f} -> {row['target_l']:.3f}, gate {row['gate_wl']:.3f}{duel}{flipped}"
            )
            console.print(line, markup=False, highlight=False)


def _print_responses(prompt: Prompt, full: bool, console: Console) -> None:
    roles = {role: {pair[role] for pair in prompt.pairs} for role in ("chosen", "rejected")}
    for i, response in enumerate(prompt.responses):
        rate = "" if prompt.rates is None else f", p = {prompt.rates[i]:.3f}"
        head = f"[{i}] {' and '.join(role for role, of in roles.items() if i in of).upper()}".rstrip()
        console.print(f"{head} ({len(response['ids'])} tokens, {response['finish']}{rate})", style="bold", markup=False)
        text = printable(response["text"])
        if not full and len(text) > SHOWN:
            text = f"{text[:SHOWN]} … ({len(text) - SHOWN:,} more characters)"
        console.print(Text(text))
        console.print()
