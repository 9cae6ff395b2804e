"""Prompts with K responses each for the benchmark of annotation, and as the samples that a shard is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import _jobs
from sparring.stages.errors import DataError
from sparring.stages.sample.stage import SAMPLES_SCHEMA

MEDIAN, SPREAD, MOST = 120, 0.9, 600
"""Of a made-up response: words, standard deviation of their logarithm, words. Mean 180; UltraFeedback's have 184."""
REPEATED = 20
"""One response in so many repeats another of its prompt."""


@dataclass(frozen=True)
class Texts:
    """What is judged."""

    name: str
    prompts: list[str]
    responses: list[list[str]]
    """K for each prompt."""

    @property
    def pairs(self) -> int:
        """Ordered pairs of two responses of one prompt, equal texts too."""
        return sum(len(row) * (len(row) - 1) for row in self.responses)

    @property
    def repeated(self) -> float:
        """Share of the responses that repeat another of their prompt."""
        return 1 - sum(len(set(row)) for row in self.responses) / sum(map(len, self.responses))

    def cut(self, k: int) -> Texts:
        """Return the first k responses of each prompt."""
        return Texts(self.name, self.prompts, [row[:k] for row in self.responses])


def texts_of(file: Path | None, prompts: int, k: int) -> Texts:
    """Return the texts of a file, or made-up ones."""
    found = _read(file, prompts, k) if file else _made_up(prompts, k)
    responses = [
        [row[(j - 1) % k] if (i * k + j + 1) % REPEATED == 0 else text for j, text in enumerate(row)]
        for i, row in enumerate(found.responses)
    ]
    return Texts(found.name, found.prompts, responses)


def samples_table(texts: Texts) -> pa.Table:
    """Return the texts as a part of the step `sample`; a response has an id for each of its words."""
    rows = [
        {
            "id": f"{i:016x}",
            "messages": [{"role": "user", "content": prompt}],
            "prompt_ids": [],
            "responses": [
                {"text": text, "ids": list(range(len(text.split()))), "finish": "stop", "seed": j}
                for j, text in enumerate(responses)
            ],
        }
        for i, (prompt, responses) in enumerate(zip(texts.prompts, texts.responses, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA)


def _made_up(prompts: int, k: int) -> Texts:
    rng = np.random.default_rng(0)
    words = " ".join(_jobs.starter_texts()).split()
    sizes = np.exp(rng.normal(np.log(MEDIAN), SPREAD, (prompts, k))).clip(1, MOST).astype(int)
    starts = rng.integers(0, len(words) - MOST, (prompts, k))
    responses = [
        [" ".join(words[a : a + n]) for a, n in zip(*row, strict=True)] for row in zip(starts, sizes, strict=True)
    ]
    return Texts("made-up responses", _jobs.short_texts(prompts), responses)


def _read(file: Path, prompts: int, k: int) -> Texts:
    """Take rows from all over the file; DataError where there are too few, or one is no such row."""
    lines = file.read_text(encoding="utf-8").splitlines()
    each = (k + 1) // 2
    if len(lines) < prompts * each:
        raise DataError(f"{file}: {len(lines)} rows, but {prompts} prompts of {k} responses take {prompts * each}.")
    step = len(lines) // prompts
    rows = [[_row(file, lines, i * step + j) for j in range(each)] for i in range(prompts)]
    responses = [[text for row in some for text in (row["chosen"], row["rejected"])][:k] for some in rows]
    return Texts(file.name, [some[0]["prompt"] for some in rows], responses)


def _row(file: Path, lines: Sequence[str], number: int) -> dict[str, str]:
    row = json.loads(lines[number])
    if not all(isinstance(row.get(key), str) for key in ("prompt", "chosen", "rejected")):
        raise DataError(f"{file}, line {number + 1}: prompt, chosen and rejected must be texts.")
    return {key: row[key].strip() for key in ("prompt", "chosen", "rejected")}
