"""What is tried next when memory ran out, in a process that could say so and in one that was killed."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, TrainingFailedError
from ray.train.v2._internal import exceptions
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from sparring.stages.errors import DataError, TrainingFault
from sparring.stages.step import Job, Places
from sparring.stages.train import memory
from sparring.stages.train.config import TRAIN
from sparring.stages.train.launch import workers
from sparring.stages.train.launch.failures import post_ending, post_failure
from sparring.stages.train.launch.mailbox import DISK_FULL, ENDING, MICRO_BATCH, mailbox, post, read
from sparring.stages.train.launch.workers import MemoryKills
from sparring.stages.train.steps import train as steps_train
from tests.refusals import named, refused
from tests.stages.train.rig import settings


@pytest.fixture
def vmstat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's counts of this machine, in a file of the test's own."""
    path = tmp_path / "vmstat"
    path.write_text("pgfault 17\noom_kill 3\n")
    monkeypatch.setattr(memory, "VMSTAT", path)
    return path


def job_of(tmp_path: Path, micro_batch: Any) -> Job:
    job = Job(
        spec=TRAIN, fingerprint="", settings=settings(micro_batch=micro_batch, global_batch=8),
        inputs={}, out=tmp_path, attempt="a", scratch=tmp_path,
    )  # fmt: skip
    mailbox(job).mkdir()
    return job


@pytest.mark.parametrize(
    ("micro_batch", "probed", "pairs"),
    [
        pytest.param(8, None, 4, id="half of what was set"),
        pytest.param("auto", {"chosen": 4}, 2, id="half of what the probe chose"),
        pytest.param("auto", {"fits": 4}, 4, id="in the probe: what it has seen fit"),
    ],
)
def test_a_failed_allocation_is_tried_again_with_fewer_pairs(
    tmp_path: Path, micro_batch: Any, probed: dict[str, int] | None, pairs: int
) -> None:
    job = job_of(tmp_path, micro_batch)
    if probed:
        post(job, MICRO_BATCH, probed)
    assert post_failure(job, 1, MemoryError())
    ending = read(job, ENDING)
    assert ending["micro_batch"] == pairs
    named(ending["text"], "rank 1", str(pairs))


def test_with_one_pair_there_is_no_less(tmp_path: Path) -> None:
    job = job_of(tmp_path, 1)
    assert post_failure(job, 0, MemoryError())
    ending = read(job, ENDING)
    assert ending["type"] == "TrainingFault" and "micro_batch" not in ending
    named(ending["message"], "rank 0", "trainer.gradient_checkpointing=true", "hardware.workers")


def test_a_kill_by_rays_memory_monitor_halves(tmp_path: Path, vmstat: Path) -> None:
    job = job_of(tmp_path, 8)
    killed = WorkerHealthCheckFailedError("gone", OutOfMemoryError("Memory on the node was 23.5GB / 24GB"))
    MemoryKills(job).after_exception(None, {1: killed})
    assert read(job, ENDING)["micro_batch"] == 4 and "rank 1" in read(job, ENDING)["text"]


def test_a_kill_by_the_kernel_halves_and_any_other_does_not(tmp_path: Path, vmstat: Path) -> None:
    job = job_of(tmp_path, 8)
    watching = MemoryKills(job)
    died = {0: WorkerHealthCheckFailedError("gone", ActorDiedError())}
    watching.after_exception(None, died)
    assert read(job, ENDING) is None
    vmstat.write_text("pgfault 18\noom_kill 4\n", encoding="utf-8")
    watching.after_exception(None, died)
    assert read(job, ENDING)["micro_batch"] == 4


def test_the_count_of_another_machine_says_nothing(tmp_path: Path, vmstat: Path) -> None:
    job = job_of(tmp_path, 8)
    watching = MemoryKills(job)
    watching.host = "elsewhere"
    vmstat.write_text("oom_kill 9\n", encoding="utf-8")
    watching.after_exception(None, {0: WorkerHealthCheckFailedError("gone", ActorDiedError())})
    assert read(job, ENDING) is None


def test_a_full_disk_is_noted_without_a_byte(tmp_path: Path) -> None:
    job = job_of(tmp_path, 1)
    assert post_failure(job, 1, OSError(errno.ENOSPC, "No space left on device"))
    assert (mailbox(job) / DISK_FULL).stat().st_size == 0 and read(job, ENDING) is None


PUBLISHED: dict[str, Any] = {"files": {"model/config.json": "x"}, "summary": {}}


ERROR: dict[str, Any] = {"type": "DataError", "message": "the targets are damaged"}
LESS: dict[str, Any] = {"text": "out of memory", "micro_batch": 4}
SAVED: dict[str, Any] = {"saved": 3, "of": 12}


@pytest.mark.parametrize("error", [MemoryError(), DataError("the prompts are damaged")], ids=["memory", "error"])
@pytest.mark.parametrize("posted", [ERROR, PUBLISHED], ids=["error", "published"])
def test_an_error_or_a_published_policy_that_was_posted_is_not_replaced(
    tmp_path: Path, posted: dict[str, Any], error: Exception
) -> None:
    job = job_of(tmp_path, 8)
    post(job, ENDING, posted)
    assert post_failure(job, 1, error)
    assert read(job, ENDING) == posted


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(LESS, PUBLISHED, PUBLISHED), (LESS, SAVED, LESS), (SAVED, LESS, LESS), (ERROR, PUBLISHED, ERROR)],
)
def test_which_of_two_endings_is_kept(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], kept: dict[str, Any]
) -> None:
    job = job_of(tmp_path, 8)
    post_ending(job, first)
    post_ending(job, second)
    assert read(job, ENDING) == kept


def test_a_kill_by_memory_after_publishing_loses_nothing(
    tmp_path: Path, vmstat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group is killed between rank 0's post and its return: the driver takes what was published."""
    job = job_of(tmp_path, 8)
    post(job, ENDING, PUBLISHED)
    killed = WorkerHealthCheckFailedError("gone", OutOfMemoryError("Memory on the node was 23.5GB / 24GB"))
    MemoryKills(job).after_exception(None, {1: killed})
    failed = TrainingFailedError("a worker died")
    assert ended(job, monkeypatch, (None, failed)) == (PUBLISHED, [])


def ended(
    job: Job, monkeypatch: pytest.MonkeyPatch, *ends: Any, nodes: tuple[int, ...] = (), sizes: list[int] | None = None
) -> tuple[Any, list[str]]:
    """What the driver makes of groups of workers that end so, one after the other, and what it says.

    nodes: the cores of each. sizes: gets the number of workers of each group.
    """
    left, seen = list(ends), []
    there = Places(nodes={str(i): {"CPU": float(cores)} for i, cores in enumerate(nodes)}, selector={})

    def fit(job: Job, stop_signal: Any, receiver: Any, wait: Any, places: Any) -> Any:
        (sizes if sizes is not None else []).append(job.workers.count)
        posted, returned = left.pop(0)
        if posted:
            post(job, ENDING, posted)
        return returned

    monkeypatch.setattr(workers, "fit", fit)
    made = steps_train._result(job, lambda: 0, lambda event: seen.append(event["text"]), lambda: there)
    return made, seen


def no_room(kind: str = "WorkerGroupStartupTimeoutError") -> Any:
    """What Ray Train raises for a group that has not begun."""
    error = getattr(exceptions, kind)
    return ControllerError(error(num_workers=4) if "Timeout" in kind else error("it died"))


@pytest.mark.parametrize(("nodes", "size"), [((2,), 2), ((2, 1), 2), ((1,), 1), ((2, 2), 4)])
def test_a_group_that_finds_no_room_has_as_many_workers_as_the_batch_divides_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: tuple[int, ...], size: int
) -> None:
    """Of a batch of 8 pairs and four workers: three cannot share it."""
    job, sizes = job_of(tmp_path, 8), list[int]()
    job = replace(job, workers=replace(job.workers, count=4, cpus=1))
    returned = SimpleNamespace(return_value=PUBLISHED)
    made, seen = ended(job, monkeypatch, (None, no_room()), (None, returned), nodes=nodes, sizes=sizes)
    assert made == PUBLISHED and sizes == [4, size]
    assert [f"{size} of 4" in text for text in seen] == ([] if size == 4 else [True])


def test_workers_that_always_die_while_they_start_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, 8)
    died = [(None, no_room("WorkerGroupStartupFailedError"))] * (job.workers.max_failures + 1)
    with refused(TrainingFault, "hardware.max_failures"):
        ended(job, monkeypatch, *died)


def test_what_rank_0_has_published_is_taken_though_its_group_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = TrainingFailedError("a worker died")
    assert ended(job_of(tmp_path, 8), monkeypatch, (PUBLISHED, failed)) == (PUBLISHED, [])


def test_a_worker_that_was_told_to_end_is_no_failure_though_it_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, 8)
    returned = SimpleNamespace(return_value=PUBLISHED)
    made, seen = ended(job, monkeypatch, (SAVED, TrainingFailedError("killed")), (None, returned))
    assert made == PUBLISHED and "step 3 of 12" in seen[0] and read(job, ENDING) is None
