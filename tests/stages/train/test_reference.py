from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from sparring.stages.train.model.scorer import PASS_TOKENS, passes
from sparring.stages.train.steps.reference import SCHEMA, Reference, finish, shards
from tests.artifacts import run_step
from tests.stages.train.rig import TARGETS, reference_job, sampled
from tests.tiny import tiny_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy"))


def run(job: object) -> tuple[list[pa.Table], list, dict]:
    return run_step(job, Reference(job), shards, finish)  # type: ignore[arg-type]


def test_log_probs_are_those_of_the_policy(policy: Path, tmp_path: Path) -> None:
    samples = sampled(6)
    tables, parts, summary = run(reference_job(tmp_path, policy, samples))
    model = AutoModelForCausalLM.from_pretrained(policy)
    for source, table in zip(samples, tables, strict=True):
        assert table.schema == SCHEMA and table["id"] == source["id"]
        for sample, row in zip(source.to_pylist(), table.to_pylist(), strict=True):
            for index, name in ((0, "chosen"), (2, "rejected")):
                ids = sample["responses"][index]["ids"]
                with torch.no_grad():
                    logits = model(torch.tensor([sample["prompt_ids"] + ids])).logits[0].double()
                log_probs = torch.log_softmax(logits, -1)[-len(ids) - 1 : -1]
                expected = log_probs.gather(1, torch.tensor(ids)[:, None]).sum().item()
                assert row[f"{name}_logprob"] == pytest.approx(expected, abs=1e-4)
                assert row[f"{name}_tokens"] == len(ids)
    assert summary["pairs"] == 6 and all(part.stats["tokens"] > 0 for part in parts)


def test_the_same_bytes_again_and_the_same_numbers_in_other_parts(policy: Path, tmp_path: Path) -> None:
    first, _, _ = run(reference_job(tmp_path / "a", policy, sampled(8)))
    again, _, _ = run(reference_job(tmp_path / "b", policy, sampled(8)))
    assert first == again
    whole, _, _ = run(reference_job(tmp_path / "c", policy, sampled(8, parts=1)))
    by_id = {row["id"]: row for row in whole[0].to_pylist()}
    for row in pa.concat_tables(first).to_pylist():
        assert row["chosen_logprob"] == pytest.approx(by_id[row["id"]]["chosen_logprob"], abs=1e-4)


def test_rows_that_are_too_long_are_counted(policy: Path, tmp_path: Path) -> None:
    tables, parts, _ = run(reference_job(tmp_path, policy, sampled(12), max_length=20))
    dropped = sum(part.dropped.get("too_long", 0) for part in parts)
    assert 0 < dropped == 12 - sum(table.num_rows for table in tables)


def test_a_part_without_pairs(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.stages.train import rig

    monkeypatch.setattr(rig, "targets_of", lambda *given: TARGETS.empty_table())
    tables, _, summary = run(reference_job(tmp_path, policy, sampled(2, parts=1)))
    assert tables[0].num_rows == 0 and tables[0].schema == SCHEMA and summary["pairs"] == 0


def test_passes_hold_every_row_once_and_stay_small() -> None:
    sizes = [600, 40, 1000, 8000, 40, 200]
    grouped = list(passes(sizes))
    assert sorted(i for group in grouped for i in group) == list(range(6))
    for group in grouped:
        assert len(group) == 1 or len(group) * max(sizes[i] for i in group) <= PASS_TOKENS
    assert len(grouped) < 6
