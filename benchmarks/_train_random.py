"""A random policy with pairs of random tokens: sizes of which no run has sampled here."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa

from benchmarks import _jobs
from benchmarks._random_policy import END, VOCABULARY, random_policy
from benchmarks._train_pairs import Pairs
from sparring.stages.train.batch.rows import ResponsePair

PROMPT, RESPONSE = (128, 512), (64, 512)
"""Tokens, at least and at most; those of `tiny` are a sixteenth."""


def random_pairs(name: str, count: int, folder: Path) -> Pairs:
    """Write a Llama of the configuration under a folder and return it with `count` random pairs."""
    rng, shorter = random.Random(0), 16 if name == "tiny" else 1

    def tokens(least: int, most: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(least // shorter, most // shorter))]

    rows = [
        ResponsePair(id=str(i), prompt=tokens(*PROMPT), chosen=tokens(*RESPONSE), rejected=tokens(*RESPONSE))
        for i in range(count)
    ]
    responses = [[{"ids": [*ids, END], "finish": "stop"} for ids in (row.chosen, row.rejected)] for row in rows]
    samples = _jobs.artifact("samples", folder / "samples", [pa.table({"responses": responses})])
    return Pairs(policy=random_policy(name, folder / "policy"), rows=rows, samples=samples)
