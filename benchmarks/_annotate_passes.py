"""PairRM alone, on this machine's GPU or else its CPU: ordered pairs/s in fp32 and in bf16, and what bf16 does to P.

On a GPU the model is of DeBERTa-v3-large's size, as PairRM is; its weights are random. The two forms of attention
(stages/annotate/disentangled.py) are beside each other, and the memory that the largest pass takes beside what it was
chosen for. No GPU has run this.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from benchmarks import _jobs
from benchmarks._annotate_checkpoint import LARGE, SIZE, SMALLEST, checkpoint
from benchmarks._annotate_rounds import moved_rows, preferences
from benchmarks._annotate_texts import texts_of
from benchmarks._rounds import ratio
from benchmarks._table import Row
from sparring.stages.annotate.oracle import Duel
from sparring.stages.annotate.pairrm import PairRM
from sparring.stages.annotate.reader import batches

FP32, BF16, BIAS = "fp32", "bf16", "bf16, places as a bias"
AIMS = {BF16: 350 * 1200, BIAS: 180 * 1200}
"""Tokens/s of a GPU in pairs: 350 pairs of 1,200 tokens a second."""


def measure(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Return pairs/s of each way, and how far bf16 moves P."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    texts = texts_of(arguments.texts, arguments.prompts, arguments.k)
    size = SMALLEST if arguments.smallest else LARGE if device == "cuda" or arguments.large else SIZE
    judge = checkpoint(folder, chain(_jobs.starter_texts(), texts.prompts, *texts.responses), size)
    ways = {FP32: PairRM(judge, "float32", device), BF16: PairRM(judge, "bfloat16", device)}
    if device == "cuda":
        ways[BIAS] = PairRM(judge, "bfloat16", device)
        ways[BIAS].encoder.looks_up = False
    places = [
        (p, i, j)
        for p, row in enumerate(texts.responses)
        for i, first in enumerate(row)
        for j, second in enumerate(row)
        if first != second
    ]
    duels = [Duel((("user", texts.prompts[p]),), texts.responses[p][i], texts.responses[p][j]) for p, i, j in places]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    logits = {way: np.zeros((len(texts.prompts), arguments.k, arguments.k)) for way in ways}
    for oracle in ways.values():  # the first call on a GPU compiles
        oracle(duels if device == "cuda" else duels[:1])
    for _ in range(arguments.rounds):
        for way, oracle in ways.items():
            begun = time.perf_counter()
            logits[way][tuple(np.transpose(places))] = oracle(duels).logits
            seconds[way].append(time.perf_counter() - begun)
    tokens = statistics.mean(len(row.ids) for row in ways[FP32].rows(duels))
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    case = (
        f"{texts.name}, {len(duels)} ordered pairs of {tokens:.0f} tokens, {size['num_hidden_layers']} layers, {where}"
    )
    speed = {way: len(duels) / statistics.median(found) for way, found in seconds.items()}
    rows = [Row(case, FP32, speed.pop(FP32), "pairs/s")]
    for way in speed:
        rows.append(Row(case, way, speed[way], "pairs/s", FP32, ratio(seconds[FP32], seconds[way])))
        if device == "cuda" and size is LARGE:
            rows.append(Row(case, f"{way}, aim", speed[way], "pairs/s", aim=AIMS[way] / tokens))
    if device == "cuda":
        rows += _memory_rows(case, ways[BF16], duels)
    exact, rough = (preferences(found.reshape(len(found), -1).tolist()) for found in (logits[FP32], logits[BF16]))
    return rows + moved_rows(case, exact, rough)


def _memory_rows(case: str, oracle: PairRM, duels: list[Duel]) -> list[Row]:
    """Return the tokens of a pass, and what the largest one took beside what they were chosen for."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, encoder = torch.cuda.memory_allocated(), oracle.encoder
    most = encoder.pass_tokens()
    lengths = [len(row.ids) for row in oracle.rows(duels)]
    largest = max(len(one) * lengths[one[0]] for one in batches(lengths, most))
    oracle(duels)
    took, counted = torch.cuda.max_memory_allocated() - before, largest * encoder.held_bytes()
    return [
        Row(case, "tokens of a pass, at most", most, "tokens"),
        Row(case, "largest pass", took / 2**30, "GiB", "counted", took / counted, 1.0),
    ]
