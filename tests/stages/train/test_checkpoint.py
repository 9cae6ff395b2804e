from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparring.stages.step import Input, Job, Workers
from sparring.stages.train.files import checkpoint
from tests.settings import changed
from tests.stages.train.rig import train_job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return train_job(tmp_path, [Input(role="policy", root=tmp_path, digest="a" * 64)])


def write(job: Job, step: int, seal: bool = True) -> Path:
    folder = checkpoint.staged(job, step)
    (folder / "global_step").mkdir(parents=True)
    (folder / "global_step" / "rank_0.pt").write_bytes(b"weights")
    (folder / "trainer_state.json").write_text("{}")
    if seal:
        checkpoint.seal(folder, step, checkpoint.binding(job))
    return folder


def test_the_newest_complete_one_is_found(job: Job) -> None:
    assert checkpoint.latest(job) is None
    write(job, 2)
    newest = write(replace(job, attempt="second"), 10)
    assert checkpoint.latest(job) == (newest, 10)


def test_one_without_its_marker_does_not_count(job: Job) -> None:
    complete = write(job, 2)
    write(job, 4, seal=False)
    assert checkpoint.latest(job) == (complete, 2)


@pytest.mark.parametrize(
    "marker", ['{"step": 2}', "[]", "null", '{"step": "2", "bound": {}, "files": {}}', "\x00", "[" * 9999]
)
def test_a_marker_that_says_something_else_does_not_count(job: Job, marker: str) -> None:
    (write(job, 2) / checkpoint.MARKER).write_text(marker)
    assert checkpoint.latest(job) is None
    (line,) = checkpoint.drop_damaged(job)
    assert "step-000002" in line and checkpoint.MARKER in line
    assert not list(checkpoint.root(job).iterdir())


def test_damaged_bytes_are_dropped_and_the_one_before_is_taken(job: Job) -> None:
    first, second, third = (write(job, step) for step in (2, 4, 6))
    for folder in (second, third):
        (folder / "global_step" / "rank_0.pt").write_bytes(b"weighty")  # the same size
    assert checkpoint.latest(job) == (third, 6)
    lines = checkpoint.drop_damaged(job)
    assert ["step-000004" in lines[0], "step-000006" in lines[1], len(lines)] == [True, True, 2]
    assert all("rank_0.pt" in line for line in lines)
    assert checkpoint.latest(job) == (first, 2) and checkpoint.drop_damaged(job) == []


@pytest.mark.parametrize("damage", ["truncate", "remove", "marker"])
def test_a_damaged_one_does_not_count(job: Job, damage: str) -> None:
    folder = write(job, 2)
    weights = folder / "global_step" / "rank_0.pt"
    match damage:
        case "truncate":
            weights.write_bytes(b"wei")
        case "remove":
            weights.unlink()
        case "marker":
            (folder / checkpoint.MARKER).write_text('{"step": 2, "bou')
    assert checkpoint.latest(job) is None


def test_one_of_other_inputs_or_definition_does_not_count(job: Job) -> None:
    write(job, 2)
    redone = replace(job.inputs["policy"], digest="b" * 64)
    assert checkpoint.latest(replace(job, inputs={"policy": redone})) is None
    assert checkpoint.latest(replace(job, workers=Workers(count=2))) is not None
    assert checkpoint.latest(replace(job, fingerprint="0" * 63 + "1")) is None
    assert checkpoint.latest(replace(job, attempt="second", settings=changed(job.settings, micro_batch=2))) is not None


def test_prune_keeps_one(job: Job) -> None:
    write(job, 2)
    write(job, 4, seal=False)
    keep = write(job, 6)
    checkpoint.prune(job, keep)
    assert list(checkpoint.root(job).iterdir()) == [keep]


def test_every_rank_hashes_what_it_wrote(job: Job) -> None:
    folder = write(job, 2, seal=False)
    for rank in (0, 1, 10):
        (folder / "global_step" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(bytes([rank]))
    parts = [checkpoint.hashes(folder, rank=rank) for rank in range(11)]
    assert [len(part) for part in parts] == [3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert {name: found for part in parts for name, found in part.items()} == checkpoint.hashes(folder)
    checkpoint.seal(folder, 2, checkpoint.binding(job), checkpoint.hashes(folder))
    assert checkpoint.latest(job) == (folder, 2) and checkpoint.damage(folder) is None
