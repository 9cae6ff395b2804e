"""Secrets of the environment are in nothing that a run writes, says, or passes to its processes as arguments; on this
machine alone its processes are reached by none but this machine."""

from __future__ import annotations

import shutil
import tempfile
import time
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from tests.faults.harness import DEADLINE_S, Run, overrides
from tests.faults.test_loop import sparring

pytestmark = [pytest.mark.faults, pytest.mark.slow]
NAMES = (
    "HF_TOKEN",
    "WANDB_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "OPENAI_API_KEY",
    "SPARRING_ORACLE_KEY",
    "SPARRING_SERVER_KEY",
)
PLANTED = "planted-secret"
"""In the value of each."""


def arguments(process: psutil.Process) -> str:
    """The command lines of a process and of all that it has started."""
    words = []
    for one in [process, *process.children(recursive=True)]:
        try:
            words += one.cmdline()
        except psutil.Error:
            continue
    return " ".join(words)


def listening(process: psutil.Process) -> set[str]:
    """ "process address" of all that a process and what it has started take connections on beside loopback."""
    addresses = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            own = {has.laddr.ip for has in one.net_connections("inet") if has.status == psutil.CONN_LISTEN}
            addresses |= {f"{one.name()} {ip}" for ip in own if not ip_address(ip.removeprefix("::ffff:")).is_loopback}
        except psutil.Error:
            continue
    return addresses


def test_no_secret_is_written(undisturbed: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in manifests, events, logs, run.json, the report, the export, Ray's own files and tables."""
    shutil.copy(undisturbed / "prompts.jsonl", tmp_path / "prompts.jsonl")
    for name in NAMES:
        monkeypatch.setenv(name, f"{PLANTED}-of-{name}")
    rays = Path(tempfile.mkdtemp(prefix="r"))  # a socket's path has at most 107 bytes
    monkeypatch.setenv("RAY_TMPDIR", str(rays))
    run = Run(tmp_path, overrides(tmp_path, policy))
    process = run.start(["tests.faults.watched", str(tmp_path / "tables")])
    driver, looked, deadline = psutil.Process(process.pid), 0, time.monotonic() + DEADLINE_S
    addresses: set[str] = set()
    while process.poll() is None and time.monotonic() < deadline:
        looked += 1
        assert PLANTED not in arguments(driver)
        addresses |= listening(driver)
        time.sleep(0.5)
    assert process.wait(1) == 0 and looked > 10, (tmp_path / "driver.log").read_text()[-3000:]
    report = sparring("report", "default", "--runs", str(tmp_path / "runs"), "--json", str(tmp_path / "report.json"))
    export = sparring("export", "default", "--runs", str(tmp_path / "runs"), "--to", str(tmp_path / "exported"))
    assert report.returncode == 0 and PLANTED not in report.stdout + report.stderr, report.stderr
    assert export.returncode == 0 and PLANTED not in export.stdout + export.stderr, export.stderr
    assert "config" in (tmp_path / "tables").read_text()
    assert (tmp_path / "runs/default/report.html").exists() and list(rays.rglob("*.log"))
    written = [
        path for root in (tmp_path, rays) for path in root.rglob("*") if path.is_file() and not path.is_symlink()
    ]
    assert len(written) > 50
    assert [str(path) for path in written if PLANTED.encode() in path.read_bytes()] == []
    shutil.rmtree(rays, ignore_errors=True)
    torch = "ray::RayTrainWorker"[:15]  # its store listens on every address, and has no setting for one
    assert [one for one in sorted(addresses) if not one.startswith(torch)] == []
