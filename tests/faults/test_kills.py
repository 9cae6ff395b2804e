"""kill -9 the driver, an actor, a training worker, in every step and between shards: the digests come out the same.

`make test` kills once in every step, at a moment drawn from a printed seed (SPARRING_SEED repeats it);
`make test-all` kills at every one of the listed moments.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import (
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
SEED = int(os.environ.get("SPARRING_SEED") or random.SystemRandom().randrange(10**6))

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


def disturb(folder: Path, policy: Path, kind: str, target: str, when: str, rng: random.Random) -> None:
    """Start the run, kill the target in the step, and run until it is done."""
    run = Run(folder, overrides(folder, policy))
    process = run.start()

    def right_moment(event: dict[str, Any]) -> bool:
        if event.get("kind") != kind:
            return False
        if when == "between":
            return event["event"] in ("shard", "train_step") and event["done"] >= 1
        return event["event"] == ("worker" if target == "worker" else "step_started")

    event = wait_for(run, process, 0, right_moment)
    moment(rng, 2.0 if when == "during" else 0.2)
    if target == "driver":
        if process.poll() is None:
            kill_driver(process)
        run.finish()
        return
    pid = (
        event["pid"]
        if "pid" in event
        else wait_for(run, process, 0, lambda e: e.get("kind") == kind and "pid" in e)["pid"]
    )
    kill_pid(pid)
    assert process.wait(240) == 0, (folder / "driver.log").read_text()[-3000:]


def check(base: Path, policy: Path, folder: Path, kind: str, target: str, when: str) -> None:
    print(f"kill {target} {when} {kind}, SPARRING_SEED={SEED}")
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
