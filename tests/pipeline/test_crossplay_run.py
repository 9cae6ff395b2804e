"""The step `crossplay` as the orchestrator runs it: on Ray, from published scores, into a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sparring.pipeline.artifact import Artifact, Manifest, publish
from sparring.pipeline.planning.plan import Plan, Step, inspect
from sparring.stages.step import File, sha256_file
from tests.pipeline.test_diagnostics import executed, finish, plan_of
from tests.pipeline.test_report import manifest
from tests.stages.evaluate.test_crossplay import scores


def finish_scores(plan: Plan, step: Step, store: Path, rate: float) -> None:
    """Publish scores whose win rates alternate around `rate`."""
    artifact, states = Artifact(store, "score", step.fingerprint), inspect(plan, store)
    artifact.path.mkdir(parents=True)
    files = []
    for index, table in enumerate(scores(rate)):
        path = artifact.path / f"part-{index:05d}.aaaa.parquet"
        pq.write_table(table, path)
        size, digest = path.stat().st_size, sha256_file(path)
        files.append(File(name=f"part-{index:05d}.parquet", path=path.name, sha256=digest, bytes=size))
    inputs = {
        role: {"name": name, "digest": getattr(states[name].manifest, "content", "") if name in states else name}
        for role, name in step.inputs.items()
    }
    own: dict[str, Any] = {"fingerprint": step.fingerprint, "version": step.spec.version, "inputs": inputs}
    publish(artifact, Manifest(**{**vars(manifest("score", {})), **own, "files": tuple(files)}))


def all_but_crossplay(plan: Plan, store: Path) -> None:
    """Publish two iterations without their cross-play: π_1 beats the base, the base π_2, and π_2 beats π_1."""
    rates = {(1, "previous"): 0.7, (2, "previous"): 0.7, (2, "base"): 0.3}
    for use, step in plan.arm(""):
        _, _, opponent = use.label.rpartition("_")
        if (store / step.name).exists() or use.label == "crossplay":
            continue
        if (use.iteration, opponent) in rates and step.spec.kind == "score":
            finish_scores(plan, step, store, rates[use.iteration, opponent])
        else:
            finish(plan, step, store, {"comparisons": [], "alarms": []} if use.label == "evaluate" else {})


@pytest.mark.slow
def test_crossplay_is_made_of_scores_alone(tmp_path: Path) -> None:
    plan, store = plan_of(tmp_path, {"": ["iterations=2"]}), tmp_path / "store"
    all_but_crossplay(plan, store)
    executed(plan, tmp_path)
    step = next(step for step in plan.steps.values() if step.spec.kind == "crossplay")
    made = Artifact(store, "crossplay", step.fingerprint).manifest()
    assert made is not None and made.rows == {"in": 6, "out": 6, "dropped": {}}
    for game in made.summary["judges"].values():
        assert game["cycle_beyond_doubt"] == [0, 2, 1] and game["mixture"] == pytest.approx([1 / 3] * 3)
    table = pq.read_table(Artifact(store, "crossplay", step.fingerprint).path / made.files[0].path)
    assert table["win_rate"].to_pylist() == pytest.approx([0.7, 0.3, 0.7] * 2)
