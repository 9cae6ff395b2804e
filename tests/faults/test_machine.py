"""What a machine does to a run: its disk is full, a process of Ray is killed, a holder of a lease is stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.faults.harness import DEADLINE_S, Run, contents, overrides, wait_for, without
from tests.faults.test_kills import LABELS

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of this size at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")
def test_a_full_disk_is_one_line_and_the_run_resumes(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    """What others write while the run begins takes the space that the plan has found free."""
    shutil.copy(undisturbed / "prompts.jsonl", tmp_path / "prompts.jsonl")
    run = Run(tmp_path, overrides(tmp_path, policy))
    with small_disk(tmp_path / "store", "400m"):
        process = run.start()
        wait_for(run, process, 0, lambda event: event["event"] == "step_started" and event["kind"] == "sample")
        with (tmp_path / "store" / "filler").open("wb") as filler:
            while shutil.disk_usage(tmp_path / "store").free > 2**20:
                filler.write(bytes(2**20))
                filler.flush()
        assert process.wait(DEADLINE_S) == 2
        log = (tmp_path / "driver.log").read_text()
        assert "the disk is full" in log.splitlines()[-1] and "Traceback" not in log, log[-3000:]
        (tmp_path / "store" / "filler").unlink()
        run.finish()
        assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.parametrize("kind", ["score", "train"])
def test_a_raylet_that_is_killed_ends_the_run_in_one_line(
    undisturbed: Path, policy: Path, tmp_path: Path, kind: str
) -> None:
    without(undisturbed, tmp_path, LABELS[kind])
    run = Run(tmp_path, overrides(tmp_path, policy))
    process = run.start()
    wait_for(run, process, 0, lambda event: event["event"] == "worker" and event["kind"] == kind)
    next(one for one in psutil.Process(process.pid).children(recursive=True) if one.name() == "raylet").kill()
    assert process.wait(120) == 2
    last = (tmp_path / "driver.log").read_text().splitlines()[-1]
    assert "Ray's process raylet ended" in last and "again" in last, last
    run.finish()
    assert contents(tmp_path) == contents(undisturbed)


def test_a_holder_that_is_stopped_past_its_lease_and_goes_on(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    """Another run takes the step over and finishes; the first one, continued, adopts what it finds."""
    without(undisturbed, tmp_path, LABELS["score"])
    first = Run(tmp_path, overrides(tmp_path, policy))
    stopped = first.start()
    wait_for(first, stopped, 0, lambda event: event["event"] == "step_started" and event["kind"] == "score")
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        second = Run(tmp_path, overrides(tmp_path, policy, "run.name=second"))
        assert second.start(["tests.faults.impatient"]).wait(DEADLINE_S) == 0
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.wait(DEADLINE_S) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    assert "is being made by run default" in (tmp_path / "driver.log").read_text()
    assert contents(tmp_path) == contents(undisturbed)
