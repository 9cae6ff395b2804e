"""`sparring stop`: the driver of a run ends cleanly, whichever machine it is on; never another process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.runs import driver
from sparring.pipeline.runs.progress import LEASE
from sparring.pipeline.store.lease import holder_of
from sparring.stages.errors import Stopped
from tests.faults.harness import Run as RealRun
from tests.faults.harness import overrides, wait_for, write_prompts
from tests.pipeline.cli.day import begun, killed
from tests.pipeline.report.fabricated import Run
from tests.refusals import named
from tests.tiny import tiny_policy

DRIVER = """
import sys, time
from pathlib import Path
from sparring.pipeline.execution import signals
from sparring.pipeline.runs import driver
from sparring.pipeline.store import lease
folder, here = Path(sys.argv[1]), sys.argv[2]
if here == "elsewhere":
    lease.machine = lambda: "another machine"
driver.POLL_S = lease.BEAT_S = 0.1
signals.handle_signals()
try:
    with lease.Lease(folder / ".lease.json", "run").acquire(wait=False) as held, driver.stoppable({folder: held.token}):
        print("ready", flush=True)
        time.sleep(60)
finally:
    print("saved", flush=True)
"""


@contextmanager
def driven(run: Run, where: str) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", DRIVER, str(run.folder), where]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def stop(run: Run) -> int:
    return main(["stop", run.name, "--runs", str(run.folder.parent)])


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_driver_ends_cleanly(tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    run = begun(tmp_path)
    (run.folder / driver.STOP).write_text("of an earlier driver")
    with driven(run, where) as process:
        assert stop(run) == 0
        out, error = process.communicate(timeout=30)
    assert out == "saved\n" and "Stopped" in error.splitlines()[-1]
    assert not (run.folder / LEASE).exists() and not (run.folder / driver.STOP).exists()
    named(capsys.readouterr().out, "run mine", str(process.pid))
    assert stop(run) == 2
    named(capsys.readouterr().err, "run mine: not running")


def test_a_pid_that_was_given_to_another_process_gets_no_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = begun(tmp_path), subprocess.Popen(["sleep", "60"])
    try:
        killed(run, pid=other.pid)
        assert stop(run) == 2
        named(capsys.readouterr().err, "run mine: killed")
        holder = holder_of(run.folder / LEASE)
        assert holder
        driver.ask(run.folder, holder)  # had it ended between the look and the signal
        assert other.poll() is None and not (run.folder / driver.STOP).exists()
    finally:
        other.kill()
        other.wait()


def test_a_driver_that_does_not_end_is_waited_for_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path)
    with driven(run, "here") as process:
        os.kill(process.pid, signal.SIGSTOP)
        monkeypatch.setattr(driver, "LONGEST_S", 0.5)
        assert stop(run) == 2
    named(capsys.readouterr().err, "run mine", str(process.pid))


def test_no_such_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "nope", "--runs", str(tmp_path)]) == 2
    named(capsys.readouterr().err, "nope")


def test_the_file_of_another_lease_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "POLL_S", 0.01)
    (tmp_path / driver.STOP).write_text("another")
    before = signal.signal(signal.SIGTERM, lambda number, frame: (_ for _ in ()).throw(Stopped("", number)))
    try:
        with driver.stoppable({tmp_path: "mine"}):
            time.sleep(0.1)
            (tmp_path / driver.STOP).write_text("mine")
            with pytest.raises(Stopped):
                time.sleep(5)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_run_that_samples_is_stopped_and_resumed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    policy = tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")
    write_prompts(tmp_path / "prompts.jsonl")
    run = RealRun(tmp_path, overrides(tmp_path, policy))
    process = run.start()
    wait_for(run, process, 0, lambda e: e["event"] == "worker" and e["kind"] == "sample")
    if where == "elsewhere":
        monkeypatch.setattr("sparring.pipeline.store.lease.machine", lambda: "another machine")
    assert main(["status", "--runs", str(tmp_path / "runs")]) == 0
    assert main(["stop", "--runs", str(tmp_path / "runs")]) == 0
    assert process.wait(60) == 128 + signal.SIGTERM
    assert json.loads(run.events.read_text().splitlines()[-1])["event"] == "stopped"
    if where == "here":
        run.finish()
