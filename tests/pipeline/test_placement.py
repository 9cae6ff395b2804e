"""What can never be placed is refused before anything is made."""

from __future__ import annotations

import pytest

from pipeline import config
from pipeline.build import build
from pipeline.commands import check_here
from pipeline.errors import ConfigError
from pipeline.placement import check_placement
from pipeline.plan import Plan, State
from tests.pipeline.plans import Fixed

TWO_CORES = [{"CPU": 2, "GPU": 0}]
NODE_OF_8 = {"CPU": 64, "GPU": 8}
SIXTEEN = ("trainer.global_batch=16", "prompts.per_iteration=128")


def plan_of(*overrides: str) -> Plan:
    profile = () if any(one.startswith("hardware=") for one in overrides) else ("hardware=cpu",)
    return build({"": config.load([*profile, *overrides])}, Fixed())


@pytest.mark.parametrize(
    ("overrides", "nodes", "key"),
    [
        ([], TWO_CORES, None),
        (["hardware.workers=2", "hardware.worker_cpus=1"], TWO_CORES, None),
        (["hardware.workers=2", "hardware.worker_cpus=2"], TWO_CORES, "hardware.workers=2"),
        (["hardware.workers=4", "hardware.worker_cpus=1"], TWO_CORES, "hardware.workers=4"),
        (["hardware.annotator_cpus=3"], TWO_CORES, "hardware.annotator_cpus=3"),
        (["hardware.cores_per_engine=5"], TWO_CORES, "hardware.cores_per_engine=5"),
        (["hardware=cuda"], TWO_CORES, "policy.tensor_parallel=1"),
        (["hardware=cuda", "hardware.workers=8"], [NODE_OF_8], None),
        (
            ["hardware=cuda", "hardware.workers=16", *SIXTEEN],
            [NODE_OF_8],
            "hardware.workers=16",
        ),
        (
            ["hardware=cuda", "hardware.workers=16", *SIXTEEN],
            [NODE_OF_8, NODE_OF_8],
            None,
        ),
        (["hardware=cuda", "policy.tensor_parallel=4"], [{"CPU": 64, "GPU": 2}] * 8, "policy.tensor_parallel=4"),
        (["hardware=cuda"], [], "no live node"),
    ],
)
def test_placement(overrides: list[str], nodes: list[dict[str, float]], key: str | None) -> None:
    steps = plan_of(*overrides).steps.values()
    if key is None:
        check_placement(steps, nodes, "the cluster")
    else:
        with pytest.raises(ConfigError) as caught:
            check_placement(steps, nodes, "the cluster")
        assert key in str(caught.value) and "the cluster has" in str(caught.value)


def test_what_is_made_already_needs_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("pipeline.placement.os.cpu_count", lambda: 2)
    plan = plan_of("hardware.workers=4", "hardware.worker_cpus=1")
    states = {name: State(kind="miss") for name in plan.steps}
    with pytest.raises(ConfigError, match="workers=4"):
        check_here(plan, states)
    check_here(plan, {name: State(kind="hit" if step.spec.run else "miss") for name, step in plan.steps.items()})
    monkeypatch.setattr("pipeline.cluster.check_address", lambda address: None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # its nodes are asked when it is joined
    check_here(plan, states)
