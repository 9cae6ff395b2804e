"""Batches of exactly the sampled tokens, of pairs of responses.

Both responses of a pair follow one copy of their prompt where the model allows it: the prompts are about half of all
tokens. The rejected response does not see the chosen one, and its positions go on from the prompt's end. These lines
are packed one after another; other models get sequences of prompt and response, one after another as well where
flash-attn computes their attention, else padded on the right. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparring.stages.train.batch.rows import ResponsePair

COLUMNS = ("p_w", "p_l", "p_wl", "label", "ref_w", "ref_l", "base_w", "base_l")
"""What an objective reads of a ResponsePair beside its tokens."""


def pool_weights(content: Tensor, pooling: str) -> Tensor:
    """Weights over positions whose sum is one per row.

    content: (R, T) bool, True at a response's tokens without its end-of-turn. `mean`: 1/n at each of the n content
    tokens; `last`: 1 at the last of them.
    """
    if pooling == "mean":
        return content.float() / content.sum(1, keepdim=True)
    positions = torch.arange(content.shape[1], device=content.device)
    last = torch.where(content, positions, -1).amax(1, keepdim=True)
    return (positions == last).float()


def collate(
    rows: Sequence[ResponsePair], end_of_turn: Collection[int], pooling: str, shared_up_to: int, flat: bool = False
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
    if shared:
        lines = [[row.prompt, row.chosen, row.rejected] for row in rows]
    else:
        lines = [[row.prompt, row.chosen] for row in rows] + [[row.prompt, row.rejected] for row in rows]
    lengths = [sum(map(len, line)) for line in lines]
    tokens = [torch.tensor([token for part in line for token in part]) for line in lines]
    places = []  # each response's positions go on from the prompt's end
    for prompt, *responses in lines:
        n = len(prompt)
        places.append(torch.tensor([*range(n), *(p for response in responses for p in range(n, n + len(response)))]))
    if shared or flat:
        ids, positions = torch.cat(tokens)[None], torch.cat(places)[None]
        mask = torch.ones_like(ids)
        if shared:  # causal, but the rejected response does not see the chosen one; padding comes last, unseen
            mask = torch.ones((len(lines), 1, max(lengths), max(lengths)), dtype=torch.bool).tril()
            for i, (prompt, chosen, _) in enumerate(lines):
                end = len(prompt) + len(chosen)
                mask[i, 0, end:, len(prompt) : end] = False
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
        **{name: torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64) for name in COLUMNS},
    }


def _responses(
    rows: Sequence[ResponsePair], starts: Sequence[tuple[int, int]], end_of_turn: Collection[int], pooling: str
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
        ends = n > 1 and response[-1] in end_of_turn  # a response of that token alone is pooled over it
        content[i, : n - ends] = True
    weights = pool_weights(content, pooling)
    return {"positions": positions, "predictors": predictors, "response_mask": mask, "pool_weights": weights}
