"""kill -9 the driver, an actor, a training worker, in every step and between shards: the digests come out the same.

`make test` kills once in every step, at a moment drawn from a printed seed (SPARRING_SEED repeats it);
`make test-all` kills at every one of the listed moments.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.harness import SEED, Run, contents, disturb, overrides, without

pytestmark = pytest.mark.faults
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


def check(base: Path, policy: Path, folder: Path, kind: str, target: str, when: str) -> None:
    without(base, folder, LABELS[kind])
    disturb(Run(folder, overrides(folder, policy)), kind, target, when)
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
