"""kill -9 the driver, an actor, a training worker, in every step and between shards: the digests come out the same.

`make test` kills a task, an engine, a training worker, and the driver at a moment drawn from a printed seed
(SPARRING_SEED repeats it); `make test-all` kills at every one of the listed moments.
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
    "logprobs": "01/logprobs_own",
    "evaluate": "01/evaluate",
}
WITH_WORKERS = ("sample", "score", "embed", "reference", "train", "logprobs")
BETWEEN = ("sample", "score", "embed", "pairs", "calibrate", "reference", "train")

MOMENTS = [
    *((kind, "driver", "during") for kind in LABELS),
    *((kind, "driver", "between") for kind in BETWEEN),
    *((kind, "worker", "during") for kind in WITH_WORKERS),
    *((kind, "worker", "between") for kind in WITH_WORKERS if kind in BETWEEN),
]


def check(base: Path, policy: Path, folder: Path, kind: str, target: str, when: str) -> None:
    without(base, folder, LABELS[kind])
    disturb(Run(folder, overrides(folder, policy)), kind, target, when)
    assert contents(folder) == contents(base)


FEW = [
    *((kind, "worker", "during") for kind in ("score", "sample", "train")),
    random.Random(SEED).choice([moment for moment in MOMENTS if moment[1] == "driver" and moment[0] != "train"]),
]


@pytest.mark.parametrize(("kind", "target", "when"), FEW)
def test_a_few_kills(undisturbed: Path, policy: Path, tmp_path: Path, kind: str, target: str, when: str) -> None:
    check(undisturbed, policy, tmp_path, kind, target, when)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "target", "when"), [moment for moment in MOMENTS if moment not in FEW])
def test_every_kill(undisturbed: Path, policy: Path, tmp_path: Path, kind: str, target: str, when: str) -> None:
    check(undisturbed, policy, tmp_path, kind, target, when)
