from __future__ import annotations

from pathlib import Path

import pytest

from sparring.stages.train.batch.rows import fitted, join_pairs, load_rows
from sparring.stages.train.steps.reference import Reference, finish, shards
from tests.artifacts import as_input, run_step
from tests.stages.train.rig import reference_job, sampled, settings, targets_of, train_job
from tests.tiny import tiny_policy


@pytest.mark.parametrize(
    ("prompt", "ended", "expected"),
    [
        (3, True, [7, 8, 9, 2]),  # fits
        (4, True, [7, 8, 2]),
        (5, True, [7, 2]),
        (6, True, [7, 8, 9, 2]),  # no room for a token and the end of its turn: left whole, so dropped
        (4, False, [7, 8, 9]),
        (5, False, [7, 8]),
        (8, False, [7, 8, 9, 2]),
    ],
)
def test_a_cut_response_keeps_its_end_of_turn(prompt: int, ended: bool, expected: list[int]) -> None:
    assert fitted(prompt, [7, 8, 9, 2], ended, max_length=7) == expected


def test_long_pairs_are_cut_and_counted_or_dropped() -> None:
    """Prompts of 4 to 20 tokens, responses of 2 to 12, into 20."""
    samples = sampled(40, parts=1)[0]
    source = {row["id"]: row for row in samples.to_pylist()}
    dropping, dropped = join_pairs(samples, targets_of(samples), 20, "drop")
    rows, too_long = join_pairs(samples, targets_of(samples), 20, "keep_end")
    assert 0 < too_long < dropped and len(rows) + too_long == len(dropping) + dropped == 40
    assert all(len(source[row.id]["prompt_ids"]) <= 18 for row in rows if row.truncated)
    assert sum(row.truncated for row in rows) == dropped - too_long
    assert [row for row in rows if not row.truncated] == dropping
    for row in rows:
        assert row.length <= 20
        for ours, index in ((row.chosen, 0), (row.rejected, 2)):
            whole = source[row.id]["responses"][index]
            room = min(len(whole["ids"]), 20 - len(row.prompt))
            last = [whole["ids"][-1]] if whole["finish"] == "stop" else [whole["ids"][room - 1]]
            assert ours == whole["ids"][: room - 1] + last


def test_reference_and_training_cut_alike(tmp_path: Path) -> None:
    """The reference's log-probs are those of the cut responses, of which the training makes its rows."""
    samples = sampled(12)
    job = reference_job(tmp_path, tiny_policy(tmp_path / "policy"), samples, max_length=20, truncate="keep_end")
    tables, parts, summary = run_step(job, Reference(job), shards, finish)
    targets = as_input("targets", tmp_path / "targets", [targets_of(table) for table in samples])
    reference = as_input("reference", tmp_path / "reference", tables)
    inputs = [job.inputs["samples"], targets, reference, job.inputs["policy"]]
    rows, too_long = load_rows(train_job(tmp_path, inputs, settings(max_length=20, truncate="keep_end")))
    assert summary["truncated"] == sum(row.truncated for row in rows) == sum(p.stats["truncated"] for p in parts) > 0
    assert too_long == sum(part.dropped.get("too_long", 0) for part in parts)
    scored = {record["id"]: record for table in tables for record in table.to_pylist()}
    for row in rows:
        record = scored[row.id]
        assert (len(row.chosen), len(row.rejected)) == (record["chosen_tokens"], record["rejected_tokens"])
        assert (row.ref_w, row.ref_l) == (record["chosen_logprob"], record["rejected_logprob"])
