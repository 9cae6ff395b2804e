"""A STAND-IN for the sampling engine, for benchmarks alone: nothing is sampled, the responses are made-up ids.

Everything around it is the step's own code: shards, rows, parquet parts, records, finish, manifest. Responses are
about `LENGTH` tokens long, drawn by numpy from the prompt's seed; an id's text is a made-up word or part of one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparring.stages.sample import stage
from sparring.stages.sample.config import SAMPLE
from sparring.stages.sample.engine import Sampled
from sparring.stages.step import Job, Part, Shard, StepSpec

STANDIN = StepSpec(
    kind=SAMPLE.kind,
    version=SAMPLE.version,
    worker="benchmarks._standin:StandIn",
    shards=SAMPLE.shards,
    finish=SAMPLE.finish,
    pool=SAMPLE.pool,
)
VOCABULARY = 49152
LENGTH = 300
SPREAD = 100
SECONDS = "standin_seconds"
"""Stat of each part: what the stand-in itself took. A real step's stats hold no times."""


class StandIn(stage.Sampler):
    """A `Sampler` without a model."""

    def __init__(self, job: Job) -> None:
        self.settings = job.settings
        self.prompts = stage._Prompts(job.inputs["prompts"], job.settings.split)
        self.chat = self.engine = self.made = MadeUp(job.settings.sampler.k)  # type: ignore[assignment]

    def __call__(self, shard: Shard) -> Part:
        before = self.made.seconds
        part = super().__call__(shard)
        return replace(part, stats={**part.stats, SECONDS: self.made.seconds - before})


class MadeUp:
    """Engine and tokenizer in one; `seconds` counts what both took."""

    def __init__(self, k: int) -> None:
        rng = np.random.default_rng(0)
        letters = np.array(list("etaoinshrdlucmfwypvbgk"))
        sizes = rng.integers(2, 7, VOCABULARY)
        first = np.where(rng.random(VOCABULARY) < 0.75, " ", "")
        self.texts = [a + "".join(rng.choice(letters, size)) for a, size in zip(first, sizes, strict=True)]
        self.k, self.seconds = k, 0.0

    def generate(self, prompt_ids: Sequence[list[int]], seeds: Sequence[int]) -> list[list[Sampled]]:
        """Return K made-up responses for each prompt."""
        begun = time.perf_counter()
        found = [self._responses(seed) for seed in seeds]
        self.seconds += time.perf_counter() - begun
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Return the texts of the ids, one after another."""
        begun = time.perf_counter()
        text = "".join([self.texts[i] for i in ids])
        self.seconds += time.perf_counter() - begun
        return text

    def _responses(self, seed: int) -> list[Sampled]:
        rng = np.random.default_rng(seed)
        lengths = rng.normal(LENGTH, SPREAD, self.k).clip(1, 2 * LENGTH).astype(int)
        return [Sampled(rng.integers(0, VOCABULARY, size).tolist(), "stop", seed + i) for i, size in enumerate(lengths)]
