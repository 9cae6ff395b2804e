"""What training survives: signals, too little memory, another number of workers. Real Ray, ZeRO-3, signals, limits."""

from __future__ import annotations

import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from sparring.pipeline.planning import estimate
from sparring.stages import patience
from sparring.stages.errors import Stopped, TrainingFault
from sparring.stages.step import Input
from sparring.stages.train import memory
from sparring.stages.train.files import checkpoint
from sparring.stages.train.launch import workers
from sparring.stages.train.steps.train import Trained, run
from tests.refusals import refused
from tests.settings import changed
from tests.stages.train.rig import OFF, digests, kill_at, settings, steps, train_inputs, train_job
from tests.tiny import tiny_policy

pytestmark = pytest.mark.faults
BATCH, LONG = 4, {"global_batch": 4, "max_length": 256, "repulsion": OFF}


def texts(seen: list[dict[str, Any]]) -> str:
    return " | ".join(str(event["text"]) for event in seen if event.get("event") == "message")


@pytest.mark.slow
def test_a_driver_told_to_end_saves_and_goes_on_where_it_was(
    undisturbed: Trained, inputs: list[Input], tmp_path: Path
) -> None:
    job = train_job(tmp_path, inputs, settings(checkpoint_steps=100))
    seen: list[dict[str, Any]] = []

    with refused(Stopped, "step 1 of 12", "SIGTERM"):
        run(job, seen.append, lambda: signal.SIGTERM if any("rank" in e for e in seen) else 0)  # when a worker is there
    assert [e["done"] for e in seen if "done" in e] == [1]
    kept = checkpoint.latest(job)
    assert kept is not None and kept[1] == 1
    taken = sum(path.stat().st_size for path in kept[0].rglob("*") if path.is_file())
    weights = estimate.weights_in_files(next(source for source in inputs if source.role == "policy"))
    assert weights is not None  # what a plan expects: fp32 weights and RMSProp's moment
    assert taken == pytest.approx(weights * (4 + estimate.MOMENTS["rmsprop"]), rel=0.02)
    again: list[dict[str, Any]] = []
    made = run(replace(job, attempt="again"), again.append)
    assert [e["done"] for e in again if "done" in e] == list(range(2, 13))
    assert digests(made) == digests(undisturbed)


def test_a_signal_ends_the_wait_for_workers_that_are_never_placed(
    ray_started: None, inputs: list[Input], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "SILENCE_S", 1.0)
    seen: list[dict[str, Any]] = []
    job = train_job(tmp_path / "told", inputs, settings(workers=2, worker_cpus=99))
    with refused(Stopped, "beginning", "SIGTERM"):
        run(job, seen.append, lambda: signal.SIGTERM if texts(seen) else 0)
    assert "waiting for 2 training workers with 99 CPUs" in texts(seen)
    monkeypatch.setattr(workers, "PLACEMENT_S", 2.0)
    with refused(TrainingFault, "placed"):
        run(replace(job, attempt="again"), seen.append)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_told_to_end_saves_and_the_group_goes_on(
    undisturbed: Trained, inputs: list[Input], tmp_path: Path, workers: int
) -> None:
    """It is no failure: none is allowed here."""
    how = settings(workers=workers, checkpoint_steps=100, max_failures=0)
    whole = undisturbed if workers == 1 else run(train_job(tmp_path / "whole", inputs, how), lambda event: None)
    seen: list[dict[str, Any]] = []

    def report(event: dict[str, Any]) -> None:
        seen.append(event)
        if event.get("rank") == workers - 1 and sum(e.get("rank") == workers - 1 for e in seen) == 1:
            os.kill(event["pid"], signal.SIGTERM)

    made = run(train_job(tmp_path / "told", inputs, how), report)
    assert digests(made) == digests(whole)
    assert "a worker got SIGTERM: step 1 of 12 is saved" in texts(seen)
    assert [e["done"] for e in seen if "done" in e] == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "optimizer"), [(2, 1, "rmsprop"), (1, 2, "adamw")])
def test_resume_with_another_number_of_workers(
    undisturbed: Trained, inputs: list[Input], tmp_path: Path, before: int, after: int, optimizer: str
) -> None:
    """The curve is that of no interruption, to what the order of a sum may change; no step is done again."""
    wanted = settings(optimizer=optimizer)
    same = wanted == settings()
    whole = undisturbed if same else run(train_job(tmp_path / "whole", inputs, wanted), lambda event: None)
    job = train_job(tmp_path / "cut", inputs, changed(wanted, workers=before, max_failures=0))
    with refused(TrainingFault, "failed 1 times"):
        run(job, kill_at(5)[1])
    kept = checkpoint.latest(job)
    assert kept is not None and kept[1] in (3, 6)
    seen: list[dict[str, Any]] = []
    again = train_job(tmp_path / "cut", inputs, changed(wanted, workers=after), attempt="again")
    made = run(again, seen.append)
    assert [e["done"] for e in seen if "done" in e] == list(range(kept[1] + 1, 13))
    for ours, theirs in zip(steps(made), steps(whole), strict=True):
        for name in ("loss", "z_w", "z_l", "h_w", "h_l", "distance", "grad_norm", "lr"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-6), name


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> list[Input]:
    """Eight steps of 4 pairs; the logits of one are a block of more than 32 MB, which is always mapped anew."""
    folder = tmp_path_factory.mktemp("wide")
    return train_inputs(folder, tiny_policy(folder / "policy"), pairs=8 * BATCH, length=(180, 190), max_length=256)


def limit_at(step: int) -> tuple[list[dict[str, Any]], Any]:
    """Return a `report` that lets a worker map no more memory than it holds, once it did `step`."""
    seen: list[dict[str, Any]] = []

    def report(event: dict[str, Any]) -> None:
        seen.append(event)
        if event.get("done") == step and sum(e.get("done") == step for e in seen) == 1:
            resource.prlimit(event["pid"], resource.RLIMIT_AS, (_least(event["pid"]), resource.RLIM_INFINITY))

    return seen, report


def _least(pid: int) -> int:
    """Bytes that a process maps between its passes, and 16 MiB for what is not its tensors."""
    found = []
    for _ in range(100):
        found.append(psutil.Process(pid).memory_info().vms)
        time.sleep(0.01)
    return int(min(found)) + 16 * 2**20


@pytest.mark.slow
def test_out_of_memory_halves_the_micro_batch_and_goes_on(ray_started: None, wide: list[Input], tmp_path: Path) -> None:
    """No failure is allowed, and none is counted."""
    wanted = settings(**LONG)
    whole = run(train_job(tmp_path / "whole", wide, changed(wanted, micro_batch=BATCH)), lambda event: None)
    seen, report = limit_at(4)
    made = run(train_job(tmp_path / "limited", wide, changed(wanted, micro_batch=BATCH, max_failures=0)), report)
    assert "ran out of memory with 4 pairs in a forward pass" in texts(seen) and "checkpoint with 2" in texts(seen)
    for ours, theirs in zip(steps(made), steps(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.slow
def test_out_of_memory_with_one_pair_names_remedies(ray_started: None, wide: list[Input], tmp_path: Path) -> None:
    wanted = settings(**LONG)
    _, report = limit_at(4)
    job = train_job(tmp_path, wide, changed(wanted, micro_batch=1))
    with refused(TrainingFault, "1 pair", "trainer.gradient_checkpointing=true"):
        run(job, report)
    kept = checkpoint.latest(job)
    assert kept is not None and kept[1] >= 3


@pytest.mark.slow
def test_a_worker_killed_for_its_memory_goes_on_with_less(
    ray_started: None, wide: list[Input], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's count looks as if it had risen while the workers ran; the kill is real."""
    monkeypatch.setattr(memory, "kernel_kills", lambda: -1)  # in the driver; the controller reads the real one
    seen, report = kill_at(4)
    wanted = settings(**LONG)
    run(train_job(tmp_path, wide, changed(wanted, micro_batch=BATCH, max_failures=0)), report)
    assert "rank 0 ran out of memory with 4 pairs in a forward pass" in texts(seen) and "checkpoint with 2" in texts(
        seen
    )
    assert [e["done"] for e in seen if "done" in e][-1] == 8


@pytest.mark.slow
def test_a_probed_micro_batch_changes_nothing_but_itself(
    ray_started: None, inputs: list[Input], tmp_path: Path
) -> None:
    """The published bytes are those of the same number given."""
    wanted = settings(repulsion=OFF)
    seen: list[dict[str, Any]] = []
    probed = run(train_job(tmp_path / "probed", inputs, changed(wanted, micro_batch="auto")), seen.append)
    chosen = next(int(t.split()[0]) for e in seen if (t := e.get("text", "")) and "in a forward pass" in t)
    assert f"{chosen} of 2 pairs in a forward pass" in texts(seen) and "tried 1, 2" in texts(seen)
    given = run(train_job(tmp_path / "given", inputs, changed(wanted, micro_batch=chosen)), lambda event: None)
    assert digests(given) == digests(probed)
