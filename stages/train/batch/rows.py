"""Pairs of responses with their tokens, targets and log-probs, of the tables of the steps that made them.

Nothing is appended to a response. What is longer than `max_length`, prompt and response together:
drop: the pair is left out and counted (`too_long`).
keep_end: what was published trained on cut responses. The response loses the tokens before its end-of-turn token, if
it has one, which stays: published code cut that off, and so taught long responses not to end. Counted (`truncated`).
A pair whose prompt leaves a response no space for a token and the end of its turn is left out in either case.

No torch: takes pyarrow tables and plain values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sparring.stages.step import Input, Job

if TYPE_CHECKING:
    import pyarrow as pa

    from sparring.stages.train.config import TrainSettings

TARGETS = ["id", "chosen", "rejected", "target_w", "target_l", "target_wl", "gate_wl"]
"""What is read of the step `calibrate`."""
SCORED = {"ref": "reference", "base": "reference_base"}
"""The roles of what the step `reference` made, by the name in ResponsePair."""


@dataclass(frozen=True, kw_only=True)
class ResponsePair:
    """One pair of responses to one prompt."""

    id: str
    pair: tuple[int, int] = (0, 1)
    """Which of the prompt's responses are the chosen and the rejected one."""
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    p_w: float = 0.5
    """Target win rate of the chosen response."""
    p_l: float = 0.5
    p_wl: float = math.nan
    """Target of their duel; NaN when they were not compared."""
    label: float = 1.0
    """Probability that the chosen response is better, were that certain before the gate: 1 - G[w,l]/2."""
    ref_w: float = 0.0
    """Log-prob of the chosen response under the reference; NaN when the step has none, as of the base."""
    ref_l: float = 0.0
    base_w: float = 0.0
    """Log-prob of the chosen response under the base."""
    base_l: float = 0.0
    truncated: bool = False
    """A response was cut."""

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def shared_length(self) -> int:
        """Tokens of the prompt and both responses."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def tokens(self) -> int:
        """Tokens of both sequences."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


def join_pairs(samples: pa.Table, pairs: pa.Table, max_length: int, truncate: str) -> tuple[list[ResponsePair], int]:
    """Rows of one part that have a pair, in the order of `pairs`, and how many were too long.

    samples: id, prompt_ids, responses; pairs (or targets): id, chosen, rejected; truncate: one of Truncation.
    """
    by_id = {row["id"]: row for row in samples.select(["id", "prompt_ids", "responses"]).to_pylist()}
    rows = []
    for pair in pairs.select(["id", "chosen", "rejected"]).to_pylist():
        prompt, indices = by_id[pair["id"]]["prompt_ids"], (pair["chosen"], pair["rejected"])
        both = [by_id[pair["id"]]["responses"][i] for i in indices]
        full = cut = [response["ids"] for response in both]
        if truncate == "keep_end":
            cut = [fitted(len(prompt), r["ids"], r["finish"] == "stop", max_length) for r in both]
        rows.append(
            ResponsePair(
                id=pair["id"], pair=indices, prompt=prompt, chosen=cut[0], rejected=cut[1], truncated=cut != full
            )
        )
    kept = [row for row in rows if row.length <= max_length]
    return kept, len(rows) - len(kept)


def join_targets(
    samples: pa.Table, targets: pa.Table, scored: Mapping[str, pa.Table], max_length: int, truncate: str
) -> tuple[list[ResponsePair], int]:
    """As `join_pairs`, with the gated targets and the log-probs of the same pair.

    targets: as `calibrate` makes them; scored: what the step `reference` made, by a name of SCORED.
    """

    def by_pair(table: pa.Table) -> dict[Any, dict[str, Any]]:
        return {(row["id"], (row["chosen"], row["rejected"])): row for row in table.to_pylist()}

    rows, too_long = join_pairs(samples, targets, max_length, truncate)
    target_of = by_pair(targets.select(TARGETS))
    scores_of = {name: by_pair(table) for name, table in scored.items()}
    joined = []
    for row in rows:
        target = target_of[row.id, row.pair]
        logprobs: dict[str, Any] = dict.fromkeys(("ref_w", "ref_l", "base_w", "base_l"), math.nan)
        for name, scores in scores_of.items():
            score = scores[row.id, row.pair]
            logprobs |= {f"{name}_w": score["chosen_logprob"], f"{name}_l": score["rejected_logprob"]}
        joined.append(
            replace(
                row,
                p_w=target["target_w"],
                p_l=target["target_l"],
                p_wl=math.nan if target["target_wl"] is None else target["target_wl"],
                label=1 - target["gate_wl"] / 2,
                **logprobs,
            )
        )
    return joined, too_long


def fitted(prompt: int, response: Sequence[int], ended: bool, max_length: int) -> list[int]:
    """Return a response's tokens, cut to what a prompt of so many leaves; uncut where that is less than two tokens.

    ended: its last token ends its turn, since it was not capped.
    """
    left = max_length - prompt
    if len(response) <= left or left < 2:
        return list(response)
    return [*response[: left - 1], response[-1]] if ended else list(response[:left])


def load_rows(job: Job[TrainSettings]) -> tuple[list[ResponsePair], int]:
    """Return all pairs with their targets and log-probs, in table order, and how many were too long."""
    limit, truncate = job.settings.trainer.max_length, job.settings.trainer.truncate
    scored = {name: job.inputs[role] for name, role in SCORED.items() if role in job.inputs}
    rows, too_long = [], 0
    for index in range(job.inputs["samples"].n_parts):
        samples = job.inputs["samples"].table(index, ["id", "prompt_ids", "responses"])
        logprobs = {name: source.table(index) for name, source in scored.items()}
        part, dropped = join_targets(samples, job.inputs["targets"].table(index), logprobs, limit, truncate)
        rows += part
        too_long += dropped
    return rows, too_long


def ends_of_turn(samples: Input) -> frozenset[int]:
    """Return the last tokens of the responses that ended by themselves: what the sampler took for the end of a turn."""
    tables = (samples.table(index, ["responses"]) for index in range(samples.n_parts))
    responses = (r for table in tables for row in table.column("responses").to_pylist() for r in row)
    return frozenset(r["ids"][-1] for r in responses if r["finish"] == "stop" and r["ids"])
