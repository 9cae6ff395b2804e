"""Runs the real command line on a tiny policy, with a kill at a chosen moment, and again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SEED = int(os.environ["SPARRING_SEED"])
PROMPTS = 24
DEADLINE_S = 600
LONGEST = {"prompts": 2.0, "pairs": 0.05, "calibrate": 0.05, "evaluate": 0.05, "crossplay": 1.0}
"""Seconds after a step's start within which it is killed; 2 s for a step with a model."""


def overrides(folder: Path, policy: Path, *more: str) -> list[str]:
    """Return the smallest run with every step: 8 prompts in 2 shards, K=2, 8 optimizer steps, 4 held-out prompts."""
    own = [
        "hardware=cpu",
        "policy=folder",
        f"policy.path={policy}",
        "prompts=file",
        f"prompts.path={folder / 'prompts.jsonl'}",
        "prompts.per_iteration=8",
        "prompts.heldout=4",
        "prompts.max_tokens=96",
        "sampler=transformers",
        "sampler.k=2",
        "sampler.max_tokens=8",
        "sampler.shard_rows=4",
        "trainer.global_batch=1",
        "trainer.max_length=128",
        "trainer.lr=1e-3",
        "hardware.micro_batch=1",
        "hardware.cores_per_engine=1",
        "hardware.annotator_cpus=1",
        "hardware.worker_cpus=1",
        "evaluate.k=1",
        "evaluate.resamples=100",
        f"paths.store={folder / 'store'}",
        f"paths.runs={folder / 'runs'}",
    ]
    set_again = {word.partition("=")[0] for word in more}
    return [*(word for word in own if word.partition("=")[0] not in set_again), *more]


def write_prompts(path: Path, rows: int = PROMPTS) -> None:
    """Write `rows` different short prompts."""
    words = ["river", "engine", "garden", "letter", "bridge", "mirror"]
    lines = [
        json.dumps({"prompt": f"Tell me {i + 1} things about a {words[i % 6]} and a {words[i // 6 % 6]}."})
        for i in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass
class Run:
    """A `sparring run`, or another command that makes steps, in a process of its own."""

    folder: Path
    arguments: list[str]
    command: str = "run"
    stream: str = "events.jsonl"
    """Its events, below the run's folder."""

    def start(self, program: Sequence[str] = ("sparring",), prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start the driver; program: the module to run, and what it takes before the command; prefix: what runs it."""
        log = (self.folder / "driver.log").open("a")
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", *program, self.command, *self.arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )

    def finish(self) -> None:
        """Run to the end; the log is the failure's message."""
        process = self.start()
        try:
            code = process.wait(DEADLINE_S)
        finally:
            process.kill()
        assert code == 0, (self.folder / "driver.log").read_text()[-3000:]

    @property
    def events(self) -> Path:
        """The event stream."""
        return self.folder / "runs" / "default" / self.stream


def wait_for(
    run: Run, process: subprocess.Popen[str], since: int, wanted: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Return the first event after byte `since` that is wanted."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for event in _events(run.events, since):
            if wanted(event):
                return event
        assert process.poll() is None, (
            "ended before the moment to kill: " + (run.folder / "driver.log").read_text()[-3000:]
        )
        time.sleep(0.02)
    raise AssertionError("the awaited event never came")


def _events(path: Path, since: int) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as handle:
        handle.seek(since)
        for line in handle:
            if line.endswith("\n"):
                yield json.loads(line)


def contents(folder: Path) -> dict[str, str]:
    """Return iteration/label -> content digest of every artifact of the run."""
    record = json.loads((folder / "runs" / "default" / "run.json").read_text())
    return {f"{t}/{label}": entry["content"] for t, row in record["steps"].items() for label, entry in row.items()}


def without(base: Path, folder: Path, label: str) -> None:
    """Copy a finished run's folder, without the artifact of iteration `label` ("01/sample")."""
    t, _, name = label.partition("/")
    record = json.loads((base / "runs" / "default" / "run.json").read_text())
    fingerprint = record["steps"][t][name]["fingerprint"]
    shutil.copytree(base / "store", folder / "store")
    shutil.copy(base / "prompts.jsonl", folder / "prompts.jsonl")
    kind = name.partition("_")[0]
    shutil.rmtree(folder / "store" / f"{kind}-{fingerprint[:8]}")


def disturb(run: Run, kind: str, target: str, when: str) -> None:
    """Run with a kill of the target while the step is unfinished (killed.py), and until all is done."""
    rng, record = random.Random(f"{SEED}/{kind}/{target}/{when}"), run.folder / "killed.json"
    after_s = rng.random() * LONGEST.get(kind, 2.0)
    moment = {"kind": kind, "target": target, "when": when, "after_s": after_s, "record": str(record)}
    code = run.start(["tests.faults.killed", json.dumps(moment)]).wait(DEADLINE_S)
    log = (run.folder / "driver.log").read_text()[-3000:]
    assert record.exists(), f"the moment never came: {log}"
    if target == "worker":
        assert code == 0, log
        return
    assert code == -signal.SIGKILL, log
    started = set(json.loads(record.read_text())["started"])
    _, alive = psutil.wait_procs([process for process in psutil.process_iter() if process.pid in started], timeout=60)
    assert not alive, f"left behind: {alive}"
    run.finish()
