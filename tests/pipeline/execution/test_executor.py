"""Which workers are started early, and which serve another step."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparring.pipeline.execution.actor_pool import ActorPool
from sparring.pipeline.execution.executor import steps_to_warm_up, tidy_after_kill
from sparring.pipeline.store.lease import Lease
from sparring.pipeline.store.manifest import Artifact
from sparring.stages.annotate.config import EMBED, SCORE
from sparring.stages.sample.config import SAMPLE
from sparring.stages.step import Input, Job, Workers
from tests.pipeline.plans import finish, plan_of
from tests.settings import sample


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("0/prompts", ["0/sample_base", "1/sample", "1/score"]),
        ("1/pairs", []),
        ("1/calibrate", []),
        ("1/train", ["1/sample_heldout", "2/sample", "2/score"]),
        ("1/evaluate", ["2/embed"]),
        ("2/train", ["2/sample_heldout", "2/score_oracle_previous", "2/score_oracle_base"]),
        ("2/evaluate", []),
    ],
)
def test_workers_are_started_up_to_the_next_training(label: str, expected: list[str]) -> None:
    steps = list(plan_of("iterations=2").steps.values())
    names = {f"{step.uses[0].iteration}/{step.uses[0].label}": step for step in steps}
    found = steps_to_warm_up(steps, names[label])
    assert [f"{step.uses[0].iteration}/{step.uses[0].label}" for step in found] == expected


def pool(job: Job, loaded: bool) -> ActorPool:
    """A pool of one worker, without Ray."""
    made = object.__new__(ActorPool)
    made.job, made.loaded, made.actors = job, loaded, [object()]
    return made


def job(spec: object, model: str, cpus: int = 2, deadline_s: float = 60.0, **settings: Any) -> Job:
    source = Input(role="policy", root=Path(), digest=model)
    return Job(
        spec=spec,  # type: ignore[arg-type]
        fingerprint=model,
        settings=sample(**settings) if settings else {},
        workers=Workers(cpus=cpus, deadline_s=deadline_s),
        inputs={"policy": source},
        out=Path(),
        attempt="a",
        scratch=Path(),
    )


def test_an_engine_serves_the_steps_of_its_policy_alone() -> None:
    engine = pool(job(SAMPLE, "one"), loaded=True)
    assert engine.fits(job(SAMPLE, "one"), 3)
    assert not engine.fits(job(SAMPLE, "two"), 3)
    assert not engine.fits(job(SAMPLE, "one", cpus=1), 3)
    assert engine.fits(job(SAMPLE, "one", deadline_s=7.0), 3)
    assert pool(job(SAMPLE, "one"), loaded=False).fits(job(SAMPLE, "two"), 3)


def test_an_engine_serves_steps_that_differ_in_what_it_does_not_read() -> None:
    engine = pool(job(SAMPLE, "one", k=4), loaded=True)
    assert engine.fits(job(SAMPLE, "one", k=2, micro_batch=3, usd_per_hour=2.0), 3)
    for changes in ({"max_model_len": 99}, {"kv_cache_gb": 7}, {"gpu_memory": 0.5}, {"engine_args": {"block_size": 8}}):
        assert not engine.fits(job(SAMPLE, "one", k=4, **changes), 3)


def test_annotators_serve_one_step_after_another() -> None:
    annotator = pool(job(SCORE, "one"), loaded=True)
    assert annotator.fits(job(EMBED, "two"), 3)
    assert not annotator.fits(job(EMBED, "two", cpus=1), 3)
    assert not annotator.fits(job(replace(EMBED, pool="engines"), "two"), 3)


def test_more_workers_than_there_are_do_not_fit() -> None:
    wide = job(EMBED, "one")
    wide = replace(wide, workers=replace(wide.workers, count=2))
    narrow = pool(job(SCORE, "one"), loaded=True)
    assert not narrow.fits(wide, 2)


@pytest.mark.parametrize("change", ["", "alive", "replaced"])
def test_what_a_kill_left_beside_a_finished_step_is_removed(tmp_path: Path, change: str) -> None:
    """Not what belongs to a run that is still at it, nor to an artifact that has taken the place of this one."""
    plan = plan_of()
    step = next(iter(plan.steps.values()))
    manifest, artifact = finish(plan, step, tmp_path), Artifact(tmp_path, step.spec.kind, step.fingerprint)
    left = artifact.path / "checkpoints.0badcafe"
    left.mkdir()
    said: list[str] = []
    holder = Lease(artifact.lease, "run a").acquire(wait=False)
    if change != "alive":
        holder._stop.set()
        content = json.loads(artifact.lease.read_text(encoding="utf-8"))
        artifact.lease.write_text(json.dumps({**content, "pid": 2**22 + 1}), encoding="utf-8")
    known = replace(manifest, summary={"of": "before"}) if change == "replaced" else manifest
    tidy_after_kill(artifact, known, "run b", said.append)
    assert left.exists() is bool(change) and artifact.lease.exists() is (change == "alive")
    holder.release()
