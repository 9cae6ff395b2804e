"""What is a hit, what is missing or stale, and how a missing step differs from what is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sparring.pipeline.planning.plan import Plan, State, explain, inspect
from sparring.pipeline.store.manifest import Artifact
from tests.pipeline.plans import finish, labels, plan_of


def states_by_label(plan: Plan, store: Path) -> dict[str, State]:
    states = inspect(plan, store)
    return {use.label: states[step.fingerprint] for use, step in plan.arm("") if use.iteration <= 1}


def test_a_hit_needs_the_inputs_bytes(tmp_path: Path) -> None:
    plan = plan_of()
    assert {state.kind for state in inspect(plan, tmp_path).values()} == {"miss"}
    for step in plan.steps.values():
        finish(plan, step, tmp_path)
    assert {state.kind for state in inspect(plan, tmp_path).values()} == {"hit"}
    sample = plan.steps[labels(plan)[1, "sample"]]
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
    assert explain(step, near) == ["sampler.temperature: 1.0 -> 0.7"]
    assert explain(step, []) == ["nothing of this kind in the store"]


GROUPS = {
    "prompts": "prompts",
    "sample": "sampler",
    "embed": "encoder",
    "pairs": "selection",
    "calibrate": "gate",
    "train": "trainer",
    "reference": "trainer",
    "logprobs": "trainer",
    "evaluate": "evaluate",
}
"""Kind of step -> the group whose settings earlier versions recorded outside it."""


def recorded_before(kind: str, identity: dict[str, Any]) -> dict[str, Any]:
    """An identity as earlier versions wrote it: `selection.by` as `selection`, `trainer.lr` as `lr`."""
    group = identity.get(GROUPS.get(kind, ""), {})
    others = {name: value for name, value in identity.items() if value is not group}
    return {**others, **{"selection" if name == "by" else name: value for name, value in group.items()}}


def test_an_artifact_of_an_earlier_version_differs_by_its_settings_alone(tmp_path: Path) -> None:
    """Not by the groups that versions since then record around them, of whatever kind its step is."""
    plan = plan_of("adapter=lora", "selection.by=top_vs_random")
    for step in plan.steps.values():
        made = finish(plan, step, tmp_path)
        before = replace(made, identity=recorded_before(made.step, made.identity))
        assert (before == made) == (made.step not in GROUPS)
        assert explain(step, [before]) == []
    after = plan_of("adapter=lora", "selection.by=extremes", "trainer.adapter.rank=4", "sampler.temperature=0.7")
    changed = {"sample": ["temperature: 1.0 -> 0.7"], "pairs": ["selection: top_vs_random -> extremes"]}
    changed["train"] = ["adapter.rank: 16 -> 4"]
    for step in after.steps.values():
        if step.spec.kind in changed:
            (old,) = (one for one in plan.steps.values() if one.uses[:1] == step.uses[:1])
            artifact = Artifact(tmp_path, old.spec.kind, old.fingerprint).manifest()
            assert artifact
            older = replace(artifact, identity=recorded_before(old.spec.kind, old.identity))
            assert [one for one in explain(step, [older]) if not one.startswith("input")] == changed[step.spec.kind]
