"""One contender of annotation in a process of its own: `_annotate_contender.py NAME CASES`; _rounds.py.

All have the same texts, the same checkpoint and all cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import _annotate_jobs
from benchmarks._annotate_checkpoint import llm_blender
from benchmarks._annotate_jobs import Case
from benchmarks._rounds import Ways, serve

BATCHES = (1, 2, 4, 8, 16)
"""Prompts that llm-blender gets at once."""


def blender(cases: dict[str, Case]) -> Ways:
    """`Blender.rank` with every batch size; its scores are s_i = mean over j of (M[i, j] - M[j, i])."""
    _all_cores()
    ranker = llm_blender().Blender()
    ranker.loadranker(str(cases["warm"].judge.root), device="cpu")
    ranker.blender_config.use_tqdm = False
    _all_cores()  # whatever its imports did

    def once(case: Case, batch: int) -> dict[str, Any]:
        scores = ranker.rank(case.texts.prompts, case.texts.responses, return_scores=True, batch_size=batch)
        return {"scores": scores.tolist()}

    return {f"llm-blender, batch {batch}": partial(once, batch=batch) for batch in BATCHES}


def ours(name: str, dtype: str, cases: dict[str, Case]) -> Ways:
    """A shard of the step `score`, from its samples to its hashed parquet file."""
    from sparring.stages.annotate.score import Scorer

    _all_cores()
    jobs = {
        case.folder: _annotate_jobs.job("scores", [case.samples, case.judge], case.folder / dtype, dtype)
        for case in cases.values()
    }
    oracle = Scorer(next(iter(jobs.values()))).oracle
    workers = {folder: Scorer(job, lambda *_: oracle) for folder, job in jobs.items()}

    def once(case: Case) -> dict[str, Any]:
        found, records = _annotate_jobs.made(jobs[case.folder], workers[case.folder])
        stats = [record["stats"] for record in records]
        logits = [row for i in range(found.n_parts) for row in found.table(i, ["logits"])["logits"].to_pylist()]
        return {"logits": logits, **{key: sum(one[key] for one in stats) for key in ("duels", "truncated")}}

    return {name: once}


def gate(cases: dict[str, Case]) -> Ways:
    """A shard of `embed`, then the one of `calibrate`, from their samples and pairs to their hashed parquet files."""
    from sparring.stages.annotate.calibrate import Calibrator
    from sparring.stages.annotate.embed import Embedder

    _all_cores()
    jobs = {
        case.folder: _annotate_jobs.job("embeddings", [case.samples, case.encoder], case.folder)
        for case in cases.values()
    }
    workers = {folder: Embedder(job) for folder, job in jobs.items()}

    def once(case: Case) -> dict[str, Any]:
        embeddings, _ = _annotate_jobs.made(jobs[case.folder], workers[case.folder])
        job = _annotate_jobs.job("targets", [case.pairs, embeddings], case.folder)
        _annotate_jobs.made(job, Calibrator(job))
        return {}

    return {"embed and calibrate": once}


CONTENDERS: dict[str, Callable[[dict[str, Case]], Ways]] = {
    "llm-blender": blender,
    "ours": partial(ours, "ours", "float32"),
    "bf16": partial(ours, "ours, bf16", "bfloat16"),
    "gate": gate,
}


def _all_cores() -> None:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)


if __name__ == "__main__":
    serve(CONTENDERS, *sys.argv[1:])
