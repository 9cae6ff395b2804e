"""Rows of the stage's tables to padded batches: [all chosen; all rejected], right-padded, exactly the sampled tokens.

Pure: takes pyarrow tables and plain values, returns rows and torch tensors. Nothing is appended to a response and
nothing cut from it; a row longer than `max_length` is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.train.repulsion import pool_weights

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pair of responses to one prompt."""

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    p_w: float = 0.5
    """Target win rate of the chosen response."""
    p_l: float = 0.5
    ref_w: float = 0.0
    """Log-prob of the chosen response under the reference."""
    ref_l: float = 0.0

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def tokens(self) -> int:
        """Tokens of both sequences."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


def join_pairs(samples: pa.Table, pairs: pa.Table, max_length: int) -> tuple[list[Row], int]:
    """Rows of one part that have a pair, in the order of `pairs`, and how many were too long.

    samples: id, prompt_ids, responses; pairs (or targets): id, chosen, rejected.
    """
    by_id = {row["id"]: row for row in samples.select(["id", "prompt_ids", "responses"]).to_pylist()}
    rows = [_row(by_id[pair["id"]], pair) for pair in pairs.select(["id", "chosen", "rejected"]).to_pylist()]
    kept = [row for row in rows if row.length <= max_length]
    return kept, len(rows) - len(kept)


def join_targets(samples: pa.Table, targets: pa.Table, reference: pa.Table, max_length: int) -> tuple[list[Row], int]:
    """As `join_pairs`, with the gated targets and the reference's log-probs of the same pair."""
    rows, too_long = join_pairs(samples, targets, max_length)
    wanted = {t["id"]: t for t in targets.select(["id", "target_w", "target_l"]).to_pylist()}
    logprobs = {r["id"]: r for r in reference.to_pylist()}
    return [_with_targets(row, wanted[row.id], logprobs[row.id]) for row in rows], too_long


def _row(sample: Mapping[str, Any], pair: Mapping[str, Any]) -> Row:
    responses = sample["responses"]
    chosen, rejected = responses[pair["chosen"]]["ids"], responses[pair["rejected"]]["ids"]
    return Row(id=sample["id"], prompt=sample["prompt_ids"], chosen=chosen, rejected=rejected)


def _with_targets(row: Row, target: Mapping[str, Any], reference: Mapping[str, Any]) -> Row:
    return Row(
        id=row.id,
        prompt=row.prompt,
        chosen=row.chosen,
        rejected=row.rejected,
        p_w=target["target_w"],
        p_l=target["target_l"],
        ref_w=reference["chosen_logprob"],
        ref_l=reference["rejected_logprob"],
    )


def content_length(response: Sequence[int], end_of_turn: Collection[int]) -> int:
    """Tokens of a response without the end-of-turn token; a response of that token alone counts it."""
    ends = len(response) > 1 and response[-1] in end_of_turn
    return len(response) - int(ends)


def collate(rows: Sequence[Row], end_of_turn: Collection[int], pooling: str) -> dict[str, Tensor]:
    """Batch of 2B sequences for `forward`, chosen first, with p_w, p_l, ref_w, ref_l (B,) float64."""
    sequences = [(row.prompt, row.chosen) for row in rows] + [(row.prompt, row.rejected) for row in rows]
    shape = (len(sequences), max(len(prompt) + len(response) for prompt, response in sequences))
    ids = torch.zeros(shape, dtype=torch.long)
    attention = torch.zeros(shape, dtype=torch.long)
    response_mask, content = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for i, (prompt, response) in enumerate(sequences):
        start, end = len(prompt), len(prompt) + len(response)
        ids[i, :end] = torch.tensor([*prompt, *response])
        attention[i, :end] = 1
        response_mask[i, start:end] = True
        content[i, start : start + content_length(response, end_of_turn)] = True
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "response_mask": response_mask,
        "pool_weights": pool_weights(content, pooling),
        **_columns(rows),
    }


def _columns(rows: Iterable[Row]) -> dict[str, Tensor]:
    rows = list(rows)
    names = ("p_w", "p_l", "ref_w", "ref_l")
    return {name: torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64) for name in names}


def deal(lengths: Sequence[int], epochs: int, global_batch: int, seed: int) -> tuple[list[int], int]:
    """Indices of the rows in training order, and how many are repeats.

    Each epoch is a seeded permutation; its last global batch is filled with the epoch's first rows, so that every
    optimizer step has exactly `global_batch` pairs. Inside a global batch rows are sorted by length: micro-batches
    pad less, and the set of rows of each optimizer step is the same for any number of workers.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(epochs):
        epoch = torch.randperm(len(lengths), generator=generator).tolist()
        missing = -len(epoch) % global_batch
        epoch += [epoch[i % len(lengths)] for i in range(missing)]
        for start in range(0, len(epoch), global_batch):
            order += sorted(epoch[start : start + global_batch], key=lambda i: (lengths[i], i))
    return order, len(order) - epochs * len(lengths)
