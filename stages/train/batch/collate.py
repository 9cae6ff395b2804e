"""Rows of the stage's tables to batches of exactly the sampled tokens.

Both responses of a pair follow one copy of their prompt where the model allows it: the prompts are about half of all
tokens. The rejected response does not see the chosen one, and its positions go on from the prompt's end. These lines
are packed one after another; other models get sequences of prompt and response, one after another as well where
flash-attn computes their attention, else padded on the right.

Pure: takes pyarrow tables and plain values, returns rows and torch tensors. Nothing is appended to a response; what
becomes of a row longer than `max_length` is truncate.py's, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparring.stages.train.batch.truncate import fitted
from sparring.stages.train.loss.repulsion import pool_weights

if TYPE_CHECKING:
    import pyarrow as pa

TARGETS = ["id", "chosen", "rejected", "target_w", "target_l", "target_wl", "gate_wl"]
"""What is read of the step `calibrate`."""
COLUMNS = ("p_w", "p_l", "p_wl", "label", "ref_w", "ref_l", "base_w", "base_l")
"""What an objective reads of a Row beside its tokens."""


@dataclass(frozen=True, kw_only=True)
class Row:
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
    """Target of their duel; NaN when they did not meet."""
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


def join_pairs(samples: pa.Table, pairs: pa.Table, max_length: int, truncate: str) -> tuple[list[Row], int]:
    """Rows of one part that have a pair, in the order of `pairs`, and how many were too long.

    samples: id, prompt_ids, responses; pairs (or targets): id, chosen, rejected; truncate: one of TRUNCATIONS.
    """
    by_id = {row["id"]: row for row in samples.select(["id", "prompt_ids", "responses"]).to_pylist()}
    limit = max_length if truncate == "keep_end" else None
    rows = [_row(by_id[pair["id"]], pair, limit) for pair in pairs.select(["id", "chosen", "rejected"]).to_pylist()]
    kept = [row for row in rows if row.length <= max_length]
    return kept, len(rows) - len(kept)


def join_targets(
    samples: pa.Table, targets: pa.Table, scored: Mapping[str, pa.Table], max_length: int, truncate: str
) -> tuple[list[Row], int]:
    """As `join_pairs`, with the gated targets and the log-probs of the same pair.

    targets: as `calibrate` makes them; scored: what the step `reference` made, by the name in Row, `ref` or `base`.
    """
    rows, too_long = join_pairs(samples, targets, max_length, truncate)
    wanted = {(t["id"], _pair(t)): t for t in targets.select(TARGETS).to_pylist()}
    found = {name: {(r["id"], _pair(r)): r for r in table.to_pylist()} for name, table in scored.items()}
    keys = [(row.id, row.pair) for row in rows]
    joined = zip(rows, keys, strict=True)
    return [_with_targets(row, wanted[k], {name: by[k] for name, by in found.items()}) for row, k in joined], too_long


def _row(sample: Mapping[str, Any], pair: Mapping[str, Any], limit: int | None) -> Row:
    prompt, both = sample["prompt_ids"], [sample["responses"][i] for i in _pair(pair)]
    whole = [each["ids"] for each in both]
    cut = whole if limit is None else [fitted(len(prompt), r["ids"], r["finish"] == "stop", limit) for r in both]
    chosen, rejected = cut
    return Row(
        id=sample["id"], pair=_pair(pair), prompt=prompt, chosen=chosen, rejected=rejected, truncated=cut != whole
    )


def _pair(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["chosen"], row["rejected"]


def _with_targets(row: Row, target: Mapping[str, Any], scored: Mapping[str, Mapping[str, Any]]) -> Row:
    duel = target["target_wl"]
    found: dict[str, Any] = dict.fromkeys(("ref_w", "ref_l", "base_w", "base_l"), math.nan)
    for name, logprobs in scored.items():
        found |= {f"{name}_w": logprobs["chosen_logprob"], f"{name}_l": logprobs["rejected_logprob"]}
    return replace(
        row,
        p_w=target["target_w"],
        p_l=target["target_l"],
        p_wl=math.nan if duel is None else duel,
        label=1 - target["gate_wl"] / 2,
        **found,
    )


def content_length(response: Sequence[int], end_of_turn: Collection[int]) -> int:
    """Tokens of a response without the end-of-turn token; a response of that token alone counts it."""
    ends = len(response) > 1 and response[-1] in end_of_turn
    return len(response) - int(ends)


def collate(
    rows: Sequence[Row], end_of_turn: Collection[int], pooling: str, shared_up_to: int, flat: bool = False
) -> dict[str, Tensor]:
    """Batch of B pairs for `forward`, with COLUMNS (B,) float64.

    Layout of the tokens, of R lines with T tokens at most, N in all:
    packed, when every sequence is at most `shared_up_to` long: R = B lines [prompt, chosen, rejected];
      input_ids, position_ids (1, N) int64; attention_mask (R, 1, T, T) bool; lengths (R,) int64, sum N;
    else R = 2B lines [prompt, response], chosen first, and `flat`:
      input_ids, position_ids, attention_mask (1, N) int64; lengths (R,) int64, sum N;
    or padded:
      input_ids, position_ids, attention_mask (R, T) int64; lengths (R,) int64.

    Of the 2B responses, chosen first, L the longest:
    positions, predictors (2B, L) int64: where in the flattened tokens a response's token is, and the token before it;
    response_mask (2B, L) bool: True where there is a token; pool_weights (2B, L) float32.
    """
    shared = max(row.length for row in rows) <= shared_up_to
    lines = [[row.prompt, row.chosen, row.rejected] for row in rows] if shared else _sequences(rows)
    lengths = [sum(map(len, line)) for line in lines]
    tokens = [torch.tensor([token for part in line for token in part]) for line in lines]
    places = [torch.tensor(_places(line)) for line in lines]
    if shared or flat:
        ids, positions = torch.cat(tokens)[None], torch.cat(places)[None]
        mask = _shared_mask(lines, max(lengths)) if shared else torch.ones_like(ids)
        firsts = [sum(lengths[:i]) for i in range(len(lines))]
    else:
        ids, positions = (pad_sequence(parts, batch_first=True) for parts in (tokens, places))
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        firsts = [i * max(lengths) for i in range(len(lines))]
    starts = [
        (first + len(line[0]), first + sum(map(len, line[:j])))
        for j in range(1, len(lines[0]))
        for line, first in zip(lines, firsts, strict=True)
    ]
    return {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": mask,
        "lengths": torch.tensor(lengths),
        **_responses(rows, starts, end_of_turn, pooling),
        **_columns(rows),
    }


def _sequences(rows: Sequence[Row]) -> list[list[list[int]]]:
    return [[row.prompt, row.chosen] for row in rows] + [[row.prompt, row.rejected] for row in rows]


def _places(line: Sequence[Sequence[int]]) -> list[int]:
    """Positions of a line's tokens: each response goes on from the prompt's end."""
    prompt = len(line[0])
    return [*range(prompt), *(p for response in line[1:] for p in range(prompt, prompt + len(response)))]


def _shared_mask(lines: Sequence[Sequence[Sequence[int]]], width: int) -> Tensor:
    """Causal, but the rejected response does not see the chosen one. Padding comes last, so nobody sees it."""
    mask = torch.ones((len(lines), 1, width, width), dtype=torch.bool).tril()
    for i, (prompt, chosen, _) in enumerate(lines):
        end = len(prompt) + len(chosen)
        mask[i, 0, end:, len(prompt) : end] = False
    return mask


def _responses(
    rows: Sequence[Row], starts: Sequence[tuple[int, int]], end_of_turn: Collection[int], pooling: str
) -> dict[str, Tensor]:
    """Indices of the responses, all chosen first; starts: the flat index after its prompt, and of its first token."""
    responses = [row.chosen for row in rows] + [row.rejected for row in rows]
    shape = (len(responses), max(map(len, responses)))
    positions, predictors = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    mask, content = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for i, (response, (after_prompt, first)) in enumerate(zip(responses, starts, strict=True)):
        n = len(response)
        positions[i, :n] = torch.arange(first, first + n)
        predictors[i, :n] = positions[i, :n] - 1
        predictors[i, 0] = after_prompt - 1
        mask[i, :n] = True
        content[i, : content_length(response, end_of_turn)] = True
    weights = pool_weights(content, pooling)
    return {"positions": positions, "predictors": predictors, "response_mask": mask, "pool_weights": weights}


def _columns(rows: Iterable[Row]) -> dict[str, Tensor]:
    rows = list(rows)
    return {name: torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64) for name in COLUMNS}


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


def shares(order: Sequence[int], lengths: Sequence[int], workers: int, micro_batch: int) -> list[int]:
    """Reorder so that the workers' micro-batches of the same time hold similar numbers of tokens; all wait for one.

    Every workers * micro_batch rows in a row are one such time, and the workers take the next micro_batch of them each.
    The rows of a time, by length, go to the workers in turn, there and back again: 0 1 2 2 1 0 0 1 2. So the rows of an
    optimizer step stay the same, and one worker's order does too if they are sorted.
    """
    window, dealt = workers * micro_batch, []
    for start in range(0, len(order), window):
        rows = sorted(order[start : start + window], key=lambda i: (lengths[i], i))
        turns = [rows[i : i + workers][:: -1 if i // workers % 2 else 1] for i in range(0, len(rows), workers)]
        dealt += [turn[worker] for worker in range(workers) for turn in turns]
    return dealt
