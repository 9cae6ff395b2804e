"""The whole loop on two real Ray nodes, and what is left of it when one of them is lost: the digests are the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cluster import ENVIRONMENT, Cluster, cluster, namespaces
from tests.faults.harness import DEADLINE_S, Run, contents, overrides, wait_for, without
from tests.faults.test_kills import LABELS

pytestmark = [pytest.mark.faults, pytest.mark.slow]
BOTH = [
    "hardware.engines=2",
    "hardware.annotators=2",
    "hardware.workers=2",
    "trainer.global_batch=2",
    "trainer.epochs=2",
    "trainer.checkpoint_steps=1",
]
EQUAL = ("sample", "score", "embed", "pairs", "calibrate", "reference")
"""Labels of iteration 1 whose bytes do not depend on the number of workers."""


@contextmanager
def on(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Runs join this cluster."""
    with monkeypatch.context() as patched:
        for name, value in {**ENVIRONMENT, "RAY_ADDRESS": made.address}.items():
            patched.setenv(name, value)
        yield made


def messages(run: Run) -> list[str]:
    """What a run has reported in words."""
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    return [event["text"] for event in events if event["event"] == "message"]


def ended(run: Run, process: subprocess.Popen[str]) -> None:
    assert process.wait(DEADLINE_S) == 0, (run.folder / "driver.log").read_text()[-3000:]


def lose_a_node(
    run: Run, made: Cluster, wanted: Callable[[dict[str, Any]], bool], goes_on: Callable[[dict[str, Any]], bool]
) -> float:
    """Run, kill the second node at a wanted event, and return the seconds until the next event by which it goes on."""
    process = run.start()
    try:
        wait_for(run, process, 0, wanted)
        made.nodes[1].kill()
        begun, seen = time.monotonic(), run.events.stat().st_size
        wait_for(run, process, seen, goes_on)
        spent = time.monotonic() - begun
        ended(run, process)
    finally:
        process.kill()
    print(f"{spent:.0f} s until it went on; {messages(run)}")
    return spent


def test_an_iteration_over_two_nodes(
    undisturbed: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines, two annotators and two training workers, one of each a node; then a training that loses a node."""
    shutil.copy(undisturbed / "prompts.jsonl", tmp_path / "prompts.jsonl")
    run = Run(tmp_path, overrides(tmp_path, policy, *BOTH))
    with cluster(tmp_path) as made, on(made, monkeypatch):
        run.finish()
        before, after = contents(undisturbed), contents(tmp_path)
        assert {label: after[f"01/{label}"] for label in EQUAL} == {label: before[f"01/{label}"] for label in EQUAL}
        lost = tmp_path / "lost"
        lost.mkdir()
        without(tmp_path, lost, LABELS["train"])
        again = Run(lost, overrides(lost, policy, *BOTH))
        spent = lose_a_node(
            again,
            made,
            lambda event: event["event"] == "train_step" and event["done"] >= 3,
            lambda event: event["event"] == "train_step" and event["done"] >= 4,
        )
        assert spent < 120
        said = messages(again)
        assert any("the nodes that are left hold 1 of 2 training workers" in text for text in said), said
        assert any(re.search(r"resumed after optimizer step [23]", text) for text in said), said
        record = json.loads((lost / "runs/default/run.json").read_text())["steps"]["01"]["train"]
        manifest = json.loads((lost / "store" / f"train-{record['fingerprint'][:8]}" / "manifest.json").read_text())
        assert manifest["summary"]["steps"] == 8


@pytest.mark.parametrize("kind", ["sample", "score", "embed"])
def test_a_node_lost_while_it_works(
    undisturbed: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is lost while the step's models load: all shards are done by the node that is left, at once."""
    without(undisturbed, tmp_path, LABELS[kind])
    run = Run(tmp_path, overrides(tmp_path, policy, "hardware.engines=2", "hardware.annotators=2"))
    with cluster(tmp_path) as made, on(made, monkeypatch):
        spent = lose_a_node(
            run,
            made,
            lambda event: event["event"] == "worker" and event["kind"] == kind,
            lambda event: event["event"] == "shard" and event["kind"] == kind,
        )
    assert spent < 60
    assert contents(tmp_path) == contents(undisturbed)


def test_the_head_and_the_driver_killed(
    undisturbed: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a new cluster, and on none, the same command goes on from the finished shards."""
    without(undisturbed, tmp_path, LABELS["score"])
    run = Run(tmp_path, overrides(tmp_path, policy))
    with cluster(tmp_path, cores=(2,)) as made, on(made, monkeypatch):
        process = run.start()
        wait_for(run, process, 0, lambda event: event["event"] == "shard" and event["kind"] == "score")
        made.nodes[0].kill()
        process.kill()
    run.finish()
    assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.skipif(os.getuid() != 0, reason="makes network namespaces")
def test_a_network_cut_of_half_a_minute(
    undisturbed: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second node is unreachable for 30 s while the step runs; nothing is lost, and no digest differs."""
    without(undisturbed, tmp_path, LABELS["sample"])
    more = ["hardware.engines=2", "hardware.annotators=2"]
    run = Run(tmp_path, overrides(tmp_path, policy, *more))
    with namespaces(tmp_path) as made, on(made, monkeypatch):
        process = run.start(prefix=made.prefix)
        try:
            wait_for(run, process, 0, lambda event: event["event"] == "worker" and event["kind"] == "sample")
            begun = time.monotonic()
            made.cut(1)
            time.sleep(30)
            made.mend(1)
            ended(run, process)
        finally:
            process.kill()
        print(f"{time.monotonic() - begun:.0f} s from the cut to the end; {messages(run)}")
    assert contents(tmp_path) == contents(undisturbed)
