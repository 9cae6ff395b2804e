"""What a killed run left is removed by the next one, what a live one has is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sparring.pipeline.execution import leftovers


def test_folders_of_processes_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers.tempfile, "gettempdir", lambda: str(tmp_path))
    own = leftovers.own_folder()
    own.mkdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    mine = leftovers._machine()
    dead = tmp_path / f"sparring-{mine}-{gone.pid}-123"
    reused = tmp_path / f"sparring-{mine}-{os.getpid()}-1"  # another process had this pid
    others, container = tmp_path / "sparring-notes", tmp_path / f"sparring-00000000-{gone.pid}-123"
    for folder in (dead, reused, others, container):
        folder.mkdir()
    (dead / "vllm_dist_1").write_text("x")
    leftovers.remove()
    assert {path.name for path in tmp_path.iterdir()} == {own.name, others.name, container.name}


@pytest.mark.parametrize("raylet", [True, False])
def test_agents_whose_raylet_is_gone_are_ended(tmp_path: Path, raylet: bool) -> None:
    """Real processes under the names that Ray gives its own: which would be ended is asked, none is."""
    session = f"session_2026-01-01_00-00-00_{os.getpid()}_{time.monotonic_ns()}"
    script = tmp_path / "ray" / "dashboard" / "agent.py"
    script.parent.mkdir(parents=True)
    script.write_text("import time; time.sleep(60)")
    processes = [subprocess.Popen([sys.executable, str(script), f"--session={session}"])]
    if raylet:
        command = ["raylet", "-c", f"import time; time.sleep(60)  # {session}"]
        processes.append(subprocess.Popen(command, executable=sys.executable))
    try:
        deadline = time.monotonic() + 10
        while not all(session in " ".join(psutil.Process(p.pid).cmdline()) for p in processes):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found = [process.pid for process in leftovers._orphaned_agents()]
        assert (processes[0].pid in found) is not raylet
    finally:
        for process in processes:
            process.kill()
            process.wait()
