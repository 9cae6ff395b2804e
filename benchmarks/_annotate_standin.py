"""STAND-INS for the oracle and the encoder, for benchmarks alone: what they say is random.

Everything around them is the steps' own code: shards, rows, parquet parts, records, finish, manifests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparring.stages.annotate import embed, score
from sparring.stages.annotate.oracle import Duel, Verdicts, untruncated
from sparring.stages.step import Job, Part, Shard

DIMENSIONS = 384
SECONDS = "standin_seconds"
"""Stat of each part: what the stand-in itself took. A real step's stats hold no times."""


class MadeUp:
    """Oracle and encoder in one; `seconds` counts what it took."""

    trained_on: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Return random logits, the same for as many duels."""
        begun = time.perf_counter()
        verdicts = untruncated(np.random.default_rng(0).normal(size=len(duels)))
        self.seconds += time.perf_counter() - begun
        return verdicts

    def encoded(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], list[int]]:
        """Return random unit vectors (len(texts), DIMENSIONS), and one window for each text."""
        begun = time.perf_counter()
        vectors = np.random.default_rng(0).normal(0.2, 1.0, (len(texts), DIMENSIONS))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.seconds += time.perf_counter() - begun
        return vectors, [1] * len(texts)

    def with_seconds(self, part: Part, before: float) -> Part:
        """Return the part with the seconds since `before` among its stats."""
        return replace(part, stats={**part.stats, SECONDS: self.seconds - before})


class StandInScorer(score.Scorer):
    """A `Scorer` without a model."""

    def __init__(self, job: Job) -> None:
        self.made = MadeUp()
        super().__init__(job, lambda kind, options, given: self.made)

    def __call__(self, shard: Shard) -> Part:
        before = self.made.seconds
        return self.made.with_seconds(super().__call__(shard), before)


class StandInEmbedder(embed.Embedder):
    """An `Embedder` without a model."""

    def __init__(self, job: Job) -> None:
        self.made = MadeUp()
        self.encoder = self.made.encoded  # type: ignore[assignment]
        self.samples = job.inputs["samples"]

    def __call__(self, shard: Shard) -> Part:
        before = self.made.seconds
        return self.made.with_seconds(super().__call__(shard), before)
