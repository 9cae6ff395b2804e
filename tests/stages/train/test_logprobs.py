"""The step `logprobs`: every response once, the numbers of `reference`, and the KL that is made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparring.stages.evaluate.bootstrap import Bootstrap, log_ratios
from sparring.stages.step import Job
from sparring.stages.train.config import LOGPROBS
from sparring.stages.train.steps.logprobs import SCHEMA, Scorer, finish
from sparring.stages.train.steps.reference import Reference, shards
from sparring.stages.train.steps.reference import finish as finish_reference
from tests.artifacts import run_step
from tests.stages.train.rig import reference_job, sampled
from tests.tiny import tiny_policy


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("policies")
    return [tiny_policy(folder / str(seed), seed=seed) for seed in range(2)]


def job_of(folder: Path, policy: Path, samples: list[pa.Table], **more: Any) -> Job:
    job = reference_job(folder, policy, samples, **more)
    return replace(job, spec=LOGPROBS, inputs={role: one for role, one in job.inputs.items() if role != "pairs"})


def run(job: Job) -> tuple[list[pa.Table], list[Any], dict[str, Any]]:
    return run_step(job, Scorer(job), shards, finish)


def test_every_response_has_the_log_prob_of_its_pair(policies: list[Path], tmp_path: Path) -> None:
    samples = sampled(6)
    tables, parts, summary = run(job_of(tmp_path / "each", policies[0], samples))
    assert [table.schema for table in tables] == [SCHEMA] * 2 and [part.rows_in for part in parts] == [9, 9]
    found = {(row["id"], row["response"]): row for table in tables for row in table.to_pylist()}
    assert sorted(found) == [(f"row-{i:03d}", response) for i in range(6) for response in range(3)]
    pairs = reference_job(tmp_path / "pairs", policies[0], samples)
    scored, _, _ = run_step(pairs, Reference(pairs), shards, finish_reference)
    for row in pa.concat_tables(scored).to_pylist():
        for role in ("chosen", "rejected"):
            one = found[row["id"], row[role]]
            assert one["logprob"] == pytest.approx(row[f"{role}_logprob"], abs=1e-4)
            assert one["tokens"] == row[f"{role}_tokens"]
    mean = sum(row["logprob"] for row in found.values()) / 18
    assert summary == {"responses": 18, "mean_logprob": pytest.approx(mean)}


def test_in_rows_of_their_own_as_behind_a_shared_prompt(policies: list[Path], tmp_path: Path) -> None:
    """Models whose attention takes no mask score a response and, beside it, a prompt without one."""
    job = job_of(tmp_path, policies[0], sampled(6))
    shared, apart = Scorer(job), Scorer(job)
    assert shared.model.shared_up_to > 0
    apart.model.shared_up_to = 0
    for shard in shards(job):
        ours, theirs = (scorer(shard).table["logprob"].to_pylist() for scorer in (shared, apart))
        assert ours == pytest.approx(theirs, abs=1e-4) and max(ours) < 0


def test_rows_that_are_too_long_are_counted(policies: list[Path], tmp_path: Path) -> None:
    tables, parts, summary = run(job_of(tmp_path, policies[0], sampled(12), max_length=20))
    kept = sum(table.num_rows for table in tables)
    assert 0 < kept == summary["responses"] == 36 - sum(part.dropped["too_long"] for part in parts)


def test_kl_is_the_difference_of_means_and_0_of_a_policy_to_itself(policies: list[Path], tmp_path: Path) -> None:
    samples = sampled(6)
    found, means = [], []
    for i, policy in enumerate(policies):
        tables, _, summary = run(job_of(tmp_path / str(i), policy, samples))
        rows = [row for table in tables for row in table.to_pylist()]
        found.append({(row["id"], row["response"]): row["logprob"] for row in rows})
        means.append(summary["mean_logprob"])
    own, other = found
    same, base = log_ratios(own, [own, other], Bootstrap(resamples=200, confidence=0.95, seed=0))
    assert (same.mean, same.low, same.high, same.n) == (0.0, 0.0, 0.0, 6)
    assert base.mean == pytest.approx(means[0] - means[1]) and base.mean != 0
    assert base.low < base.mean < base.high
