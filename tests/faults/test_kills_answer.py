"""kill -9 of `sparring answer --best-of`, in each of its steps and between shards: the file is the same, byte for byte.

`make test` kills at one moment, drawn from the printed seed; `make test-all` at every one.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.faults.harness import SEED, Run, disturb
from tests.pipeline.suites import runs
from tests.tiny import tiny_policy

pytestmark = pytest.mark.faults

SAMPLING = ["sampler=transformers", "sampler.max_tokens=8", "evaluate.shard_rows=2"]
ROWS = [{"dataset": "rivers", "instruction": f"Name {i + 2} rivers."} for i in range(8)]
"""In four shards."""
MOMENTS = [
    ("prompts", "driver", "during"),
    *(
        (kind, target, when)
        for kind in ("sample", "score")
        for target in ("driver", "worker")
        for when in ("during", "between")
    ),
]
DRAWN = random.Random(f"{SEED}/answer").choice(MOMENTS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "trained", seed=1)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, policy: Path, trained: Path) -> Path:
    """Answers that nobody disturbed."""
    folder = tmp_path_factory.mktemp("answered")
    answering(folder, policy, trained).finish()
    return folder


def answering(folder: Path, policy: Path, trained: Path) -> Run:
    """A run whose iteration 1 has trained, and the command by which its policy answers a suite."""
    runs.begin(folder, policy, *SAMPLING)
    runs.train(folder, 1, trained)
    suite = folder / "suite.json"
    suite.write_text(json.dumps(ROWS))
    words = [str(suite), "default", "--runs", str(folder / "runs"), "--best-of", "2"]
    return Run(folder, words, command="answer", stream="answers/logs/events.jsonl")


def answers(folder: Path) -> bytes:
    return (folder / "runs/default/answers/suite-default-iter-1-best-of-2.json").read_bytes()


def check(answered: Path, policy: Path, trained: Path, folder: Path, kind: str, target: str, when: str) -> None:
    run = answering(folder, policy, trained)
    for name in {"prompts", "sample", "score"} - {kind}:
        (made,) = (answered / "store").glob(f"{name}-*")
        shutil.copytree(made, folder / "store" / made.name)
    disturb(run, kind, target, when)
    assert answers(folder) == answers(answered)
    assert len({row["output"] for row in json.loads(answers(folder))}) > 1


@pytest.mark.slow
def test_one_kill(answered: Path, policy: Path, trained: Path, tmp_path: Path) -> None:
    check(answered, policy, trained, tmp_path, *DRAWN)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "target", "when"), [moment for moment in MOMENTS if moment != DRAWN])
def test_every_kill(
    answered: Path, policy: Path, trained: Path, tmp_path: Path, kind: str, target: str, when: str
) -> None:
    check(answered, policy, trained, tmp_path, kind, target, when)
