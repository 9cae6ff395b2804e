"""What is a hit, what is missing or stale, and how a missing step differs from what is there."""

from __future__ import annotations

from pathlib import Path

from sparring.pipeline.artifact import Artifact
from sparring.pipeline.planning.plan import Plan, State, explain, inspect
from tests.pipeline.plans import finish, plan_of


def states_by_label(plan: Plan, store: Path) -> dict[str, State]:
    states = inspect(plan, store)
    return {use.label: states[step.fingerprint] for use, step in plan.arm("") if use.iteration <= 1}


def test_a_hit_needs_the_inputs_bytes(tmp_path: Path) -> None:
    plan = plan_of()
    assert {state.kind for state in inspect(plan, tmp_path).values()} == {"miss"}
    for step in plan.steps.values():
        finish(plan, step, tmp_path)
    assert {state.kind for state in inspect(plan, tmp_path).values()} == {"hit"}
    sample = next(step for step in plan.steps.values() if step.spec.kind == "sample")
    Artifact(tmp_path, "sample", sample.fingerprint).set_aside()
    finish(plan, sample, tmp_path, content="other bytes")
    found = states_by_label(plan, tmp_path)
    assert found["sample"].kind == "hit"
    assert (found["score"].kind, found["score"].why) == ("stale", "input samples changed bytes")
    assert found["pairs"].why.startswith("input samples changed bytes")
    assert found["train"].kind == "stale" and found["sample_heldout"].kind == "stale"


def test_missing_and_resized_files_are_stale(tmp_path: Path) -> None:
    plan = plan_of()
    step = next(iter(plan.steps.values()))
    manifest = finish(plan, step, tmp_path)
    path = Artifact(tmp_path, step.spec.kind, step.fingerprint).path / manifest.files[0].path
    path.write_text("longer than it was")
    assert "bytes, recorded" in inspect(plan, tmp_path)[step.fingerprint].why
    path.unlink()
    assert "is missing" in inspect(plan, tmp_path)[step.fingerprint].why


def test_a_corrupt_manifest_is_stale_and_named(tmp_path: Path) -> None:
    plan = plan_of()
    step = next(iter(plan.steps.values()))
    finish(plan, step, tmp_path)
    (Artifact(tmp_path, step.spec.kind, step.fingerprint).path / "manifest.json").write_text("{}")
    state = inspect(plan, tmp_path)[step.fingerprint]
    assert state.kind == "stale" and "corrupt manifest" in state.why


def test_why_names_the_fields_that_differ_from_the_nearest(tmp_path: Path) -> None:
    before, after = plan_of(), plan_of("sampler.temperature=0.7")
    made = [finish(before, step, tmp_path) for step in before.steps.values()]
    step = next(s for s in after.steps.values() if s.spec.kind == "sample" and s.settings.split == "train")
    near = [m for m in made if m.step == "sample"]
    assert explain(after, step, near) == ["sampler.temperature: 1.0 -> 0.7"]
    assert explain(after, step, []) == ["nothing of this kind in the store"]
