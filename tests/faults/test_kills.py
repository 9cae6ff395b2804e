"""kill -9 the driver, an actor, a training worker, in every step and between shards: the digests come out the same.

`make test` kills once in every step, at a moment drawn from a printed seed (SPARRING_SEED repeats it);
`make test-all` kills at every one of the listed moments.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.harness import (
    DEADLINE_S,
    Run,
    contents,
    kill_driver,
    kill_pid,
    moment,
    overrides,
    wait_for,
    without,
)

pytestmark = pytest.mark.faults
SEED = int(os.environ["SPARRING_SEED"])

LABELS = {
    "prompts": "00/prompts",
    "sample": "01/sample",
    "score": "01/score",
    "embed": "01/embed",
    "pairs": "01/pairs",
    "calibrate": "01/calibrate",
    "reference": "01/reference",
    "train": "01/train",
    "evaluate": "01/evaluate",
}
WITH_WORKERS = ("sample", "score", "embed", "reference", "train")
BETWEEN = ("sample", "score", "embed", "pairs", "calibrate", "reference", "train")

MOMENTS = [
    *((kind, "driver", "during") for kind in LABELS),
    *((kind, "driver", "between") for kind in BETWEEN),
    *((kind, "worker", "during") for kind in WITH_WORKERS),
    *((kind, "worker", "between") for kind in WITH_WORKERS),
]


LONGEST = {"prompts": 2.0, "pairs": 0.05, "calibrate": 0.05, "evaluate": 0.05}
"""Seconds after a step's start within which it is killed; 2 s for a step with a model."""
TRIES = 6


def disturb(folder: Path, policy: Path, kind: str, target: str, when: str, rng: random.Random) -> None:
    """Start the run, kill the target while the step is unfinished, and run until all is done."""
    run = Run(folder, overrides(folder, policy))
    for attempt in range(TRIES):
        begun = run.events.stat().st_size if run.events.exists() else 0
        process = run.start()
        event = wait_for(run, process, begun, lambda e: _right_moment(e, kind, target, when))
        moment(rng, (LONGEST.get(kind, 2.0) if when == "during" else 0.1) / 2**attempt)
        pid = process.pid if target == "driver" else event.get("pid") or worker_of(run, process, begun, kind)
        hit = psutil.pid_exists(pid) and not (folder / "store" / event["step"] / "manifest.json").exists()
        if target == "driver":
            kill_driver(process)
            run.finish()
        else:
            kill_pid(pid)
            assert process.wait(DEADLINE_S) == 0, (folder / "driver.log").read_text()[-3000:]
        if hit:
            return
        shutil.rmtree(folder / "store" / event["step"])
    pytest.fail(f"{kind} was always done before it could be killed")


def _right_moment(event: dict[str, Any], kind: str, target: str, when: str) -> bool:
    if event.get("kind") != kind:
        return False
    if when == "between":
        return event["event"] in ("shard", "train_step") and event["done"] < event["of"]
    return bool(event["event"] == ("worker" if target == "worker" else "step_started"))


def worker_of(run: Run, process: Any, begun: int, kind: str) -> int:
    """Return the pid of the step's first worker."""
    return int(wait_for(run, process, begun, lambda e: e.get("kind") == kind and "pid" in e)["pid"])


def check(base: Path, policy: Path, folder: Path, kind: str, target: str, when: str) -> None:
    without(base, folder, LABELS[kind])
    disturb(folder, policy, kind, target, when, random.Random(f"{SEED}/{kind}/{target}/{when}"))
    assert contents(folder) == contents(base)


def _drawn() -> list[tuple[str, str, str]]:
    """One moment for each step."""
    rng = random.Random(SEED)
    return [rng.choice([m for m in MOMENTS if m[0] == kind]) for kind in LABELS]


@pytest.mark.parametrize(("kind", "target", "when"), _drawn())
def test_one_kill_in_every_step(
    undisturbed: Path, policy: Path, tmp_path: Path, kind: str, target: str, when: str
) -> None:
    check(undisturbed, policy, tmp_path, kind, target, when)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "target", "when"), [m for m in MOMENTS if m not in _drawn()])
def test_every_kill(undisturbed: Path, policy: Path, tmp_path: Path, kind: str, target: str, when: str) -> None:
    check(undisturbed, policy, tmp_path, kind, target, when)
