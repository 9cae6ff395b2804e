"""docs/scale.md: current, and its stages are what the plan says of the same machine."""

from __future__ import annotations

import pytest

from scripts import scale
from sparring.pipeline import config
from sparring.pipeline.planning.estimate import Estimate
from sparring.pipeline.planning.iteration import build
from tests.pipeline.plans import Fixed


def test_the_page_is_what_the_script_writes() -> None:
    assert scale.PAGE.read_text(encoding="utf-8") == scale.page(), "python -m scripts.scale"


@pytest.mark.parametrize("machine", scale.MACHINES, ids=lambda machine: machine.title)
def test_no_stage_is_planned_faster_than_its_limit(machine: scale.Machine) -> None:
    stages = list(scale.stages(machine))
    assert len(stages) == 5 and all(0 < stage.limit_s < stage.planned_s for stage in stages)


def test_eight_gpus_take_what_the_plan_says() -> None:
    words = ["experiment=s_sppo_llama3_8b", "hardware=h100x8", "oracle.options.dtype=bfloat16"]
    plan = build({"": config.load([*words, "prompts.slices=null", "prompts.per_iteration=20000"])}, Fixed())
    expected = Estimate(plan, [])
    planned = {use.label: expected.cost(s).seconds - expected.starts.get(s.fingerprint, 0) for use, s in plan.arm("")}
    pages = {stage.name.partition(" ")[0]: stage.planned_s for stage in scale.stages(scale.MACHINES[0])}
    for label, within in (("sample", 0.01), ("score", 0.01), ("reference", 0.02), ("train", 0.03)):
        assert pages[label] == pytest.approx(planned[label], rel=within), label
