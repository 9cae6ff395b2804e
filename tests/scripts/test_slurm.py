"""The Slurm script, without Slurm: stand-ins for srun, scontrol and make start processes on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from scripts.slurm.wait_for_nodes import wait

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "slurm" / "iter.sbatch"
SRUN = """#!/usr/bin/env bash
# Starts the command once for each node of --nodelist, each with one core, and ends them when it is told to.
while [[ $1 == --* ]]; do
  case $1 in --nodelist=*) nodes=${1#*=} ;; --output=*) output=${1#*=} ;; esac
  shift
done
trap 'kill -TERM $(jobs -p); wait' TERM
for node in ${nodes//,/ }; do SLURM_CPUS_ON_NODE=1 "$@" >"${output//%N/$node}" 2>&1 & done
wait
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then tr , '\\n' <<<"$3"; else echo "$*" >>requeued; fi
"""
MAKE = """#!/usr/bin/env bash
# Stands for a run: ends by itself with what EXIT says, or at SIGTERM, as sparring does, once it has saved.
trap 'sleep 0.2; echo saved >state; exit 143' TERM
echo "$*" >arguments
if [[ ${RAY_ADDRESS:-} ]]; then
  stat -c %a "$RAY_AUTH_TOKEN_PATH" >mode
  .venv/bin/python -c 'import os, sys; from sparring.pipeline.execution import ray_cluster
print(len(ray_cluster.ask(os.environ["RAY_ADDRESS"])))' >nodes
  RAY_AUTH_TOKEN=another .venv/bin/ray status >refused 2>&1 && echo answered >refused
fi
echo running >state
[[ ! ${EXIT:-} ]] || exit "$EXIT"
while :; do sleep 0.1; done
"""


class Job:
    """What sbatch does with the script: its options, an allocation in the environment, signals to its shell alone."""

    def __init__(self, folder: Path, nodes: str = "one", srun: str = SRUN, **environment: str) -> None:
        self.folder = folder
        for name, text in (("srun", srun), ("scontrol", SCONTROL), ("make", MAKE)):
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        self.number = 10_000 + os.getpid() % 9_000
        words = SCRIPT.read_text(encoding="utf-8")
        self.options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)", words, re.MULTILINE))
        slurm = {
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": str(self.number),
            "SLURM_JOB_NODELIST": nodes,
            "SLURM_JOB_NUM_NODES": str(len(nodes.split(","))),
        }
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), "N=2", "ARGS=seed=3"],
            env={
                **os.environ,
                **slurm,
                "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                **environment,
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def until_running(self, limit_s: float) -> None:
        """Wait until make has begun."""
        deadline = time.monotonic() + limit_s
        while not (self.folder / "state").exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()[1]
            time.sleep(0.1)

    def end(self, number: int | None = None, limit_s: float = 30) -> tuple[int, str]:
        """Send a signal to the shell of the script; return its exit code and what it said."""
        if number:
            self.process.send_signal(number)
        _, said = self.process.communicate(timeout=limit_s)
        return self.process.returncode, said

    @property
    def requeued(self) -> bool:
        """Whether the script queued the job again."""
        path = self.folder / "requeued"
        return path.exists() and path.read_text() == f"requeue {self.number}\n"


def test_the_signal_before_the_limit_saves_the_run_and_queues_it_again(tmp_path: Path) -> None:
    job = Job(tmp_path)
    to, name = re.fullmatch(r"(B:)([A-Z]+)@\d+", job.options["signal"]).groups()
    assert to and "requeue" in job.options, "sent to the shell alone; the job may be queued again"
    job.until_running(10)
    code, _ = job.end(getattr(signal, f"SIG{name}"))
    assert (tmp_path / "state").read_text() == "saved\n" and job.requeued and code == 143
    assert (tmp_path / "arguments").read_text() == "iter N=2 ARGS=seed=3\n"


def test_an_interrupt_saves_the_run_for_good(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.until_running(10)
    code, _ = job.end(signal.SIGINT)
    assert (tmp_path / "state").read_text() == "saved\n" and not job.requeued and code == 143


@pytest.mark.parametrize("code", [0, 2])
def test_a_run_that_ends_by_itself_is_not_queued_again(tmp_path: Path, code: int) -> None:
    job = Job(tmp_path, EXIT=str(code))
    assert job.end()[0] == code and not job.requeued


def test_restarts_have_a_bound(tmp_path: Path) -> None:
    job = Job(tmp_path, SLURM_RESTART_COUNT="3", MOST_RESTARTS="3")
    job.until_running(10)
    _, said = job.end(signal.SIGTERM)
    assert not job.requeued and "3 times" in said


def test_waiting_for_nodes_has_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    assert wait("127.0.0.1:1", 2, 0.1) == 1
    assert "0 of 2 nodes" in capsys.readouterr().err


@pytest.mark.slow
def test_two_nodes_join_with_a_token_and_end_with_the_job(tmp_path: Path) -> None:
    job = Job(tmp_path, "one,two", INTERFACE="lo")
    job.until_running(120)
    ours = psutil.Process(job.process.pid).children(recursive=True)
    assert (tmp_path / "nodes").read_text() == "2\n" and (tmp_path / "mode").read_text() == "600\n"
    assert "token" in (tmp_path / "refused").read_text().lower(), "another token gets no answer"
    job.end(signal.SIGTERM, limit_s=60)
    assert job.requeued and not list(tmp_path.glob(".slurm-*"))
    _, alive = psutil.wait_procs(ours, timeout=10)
    assert not alive, "Ray ends on all nodes"


@pytest.mark.slow
def test_a_node_that_does_not_join_ends_the_job(tmp_path: Path) -> None:
    job = Job(tmp_path, "one,two", SRUN.replace("${nodes//,/ }", "${nodes/two/}"), INTERFACE="lo", JOIN_S="40")
    code, said = job.end(limit_s=180)
    assert code == 1 and "1 of 2 nodes" in said and not (tmp_path / "state").exists()
