"""The order in which pairs are trained on, and which worker gets which of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import torch


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
    """Reorder so that the micro-batches that workers compute at the same time hold similar numbers of tokens.

    All workers wait for the slowest one. Each window of workers * micro_batch rows is computed at the same time: its
    rows, sorted by length, are dealt to the workers in alternating direction, 0 1 2 2 1 0 0 1 2. The rows of an
    optimizer step stay the same; so does their order where there is one worker and they are sorted.
    """
    window, dealt = workers * micro_batch, []
    for start in range(0, len(order), window):
        rows = sorted(order[start : start + window], key=lambda i: (lengths[i], i))
        turns = [rows[i : i + workers][:: -1 if i // workers % 2 else 1] for i in range(0, len(rows), workers)]
        dealt += [turn[worker] for worker in range(workers) for turn in turns]
    return dealt
