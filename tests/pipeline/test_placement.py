"""What can never be placed is refused before anything is made."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sparring.pipeline import config
from sparring.pipeline.cli import main
from sparring.pipeline.cli import plan as cli_plan
from sparring.pipeline.cli.prepare import check_here, check_servers
from sparring.pipeline.config import load
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.planning.placement import check_placement
from sparring.pipeline.planning.plan import Plan, State
from sparring.stages.errors import ConfigError
from tests.pipeline.plans import Fixed
from tests.refusals import named, refused

TWO_CORES = [{"CPU": 2, "GPU": 0}]
NODE_OF_8 = {"CPU": 64, "GPU": 8}
EIGHT = ("trainer.global_batch=8", "prompts.per_iteration=64")
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
        (["hardware=cuda", "hardware.workers=8", *EIGHT], [NODE_OF_8], None),
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
        (["hardware=cuda"], [], "node"),
    ],
)
def test_placement(overrides: list[str], nodes: list[dict[str, float]], key: str | None) -> None:
    steps = plan_of(*overrides).steps.values()
    if key is None:
        check_placement(steps, nodes, "the cluster")
    else:
        with refused(ConfigError, key, "the cluster"):
            check_placement(steps, nodes, "the cluster")


def test_what_is_made_already_needs_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sparring.pipeline.execution.ray_cluster.os.cpu_count", lambda: 2)
    plan = plan_of("hardware.workers=4", "hardware.worker_cpus=1")
    states = {name: State(kind="miss") for name in plan.steps}
    with refused(ConfigError, "workers=4"):
        check_here(plan, states)
    check_here(plan, {name: State(kind="hit" if step.spec.run else "miss") for name, step in plan.steps.items()})
    monkeypatch.setattr("sparring.pipeline.execution.ray_cluster.check_address", lambda address: [])
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # its nodes are asked when it is joined
    check_here(plan, states)


def test_servers_of_which_none_answers_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        live, dead = f"http://127.0.0.1:{server.getsockname()[1]}", "http://127.0.0.1:1"
        judged = ["oracle=llm", "oracle.options.model=m", f"oracle.urls=[{dead},'http://nowhere.invalid:80']"]
        plan = plan_of("sampler=server", f"sampler.urls=[{dead},{live}]", *judged)
        states = {name: State(kind="miss") for name in plan.steps}
        with refused(ConfigError, "oracle.urls", "127.0.0.1:1", "nowhere.invalid"):
            check_servers(plan, states)
        scored = {name: State(kind="hit") for name, step in plan.steps.items() if step.spec.kind == "score"}
        check_servers(plan, {**states, **scored})


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ([], []),
        (["hardware.engines=2"], []),
        (["hardware.engines=4"], ["hardware.engines=4", "hardware.cores_per_engine=1"]),
        (
            ["hardware.annotators=2", "hardware.annotator_cpus=2"],
            ["hardware.annotators=2", "hardware.annotator_cpus=2"],
        ),
        (["hardware.kv_cache_gb=999"], ["hardware.kv_cache_gb=999", "24 GB"]),
        (["sampler=transformers"], []),
        (["sampler=server", "sampler.urls=[http://127.0.0.1:1]"], []),
    ],
)
def test_one_machine_must_hold_all_workers_of_a_pool(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], keys: list[str]
) -> None:
    monkeypatch.setattr("sparring.stages.hardware.os.cpu_count", lambda: 2)
    steps = plan_of(*overrides).steps.values()
    machine = [{"CPU": 2, "GPU": 0, "GB": 24.0}]
    if not keys:
        check_placement(steps, machine, "this machine", alone=True)
        return
    with refused(ConfigError, *keys):
        check_placement(steps, machine, "this machine", alone=True)
    if "hardware.kv_cache_gb=999" not in keys:  # on a cluster there are as many as it holds, at least one
        check_placement(steps, TWO_CORES, "the cluster")


@pytest.mark.parametrize(("visible", "left"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("0,1,2,3", 2)])
def test_gpus_that_are_hidden_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, left: int
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H100'\necho 'GPU 1: H100'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ray_cluster.gpu_count() == left


def test_what_the_gpus_are_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(driver: str, mig: str) -> None:
        lines = {"memory.total": "81559\n46068", "driver_version": driver, "mig.mode.current": mig}
        for field, text in lines.items():
            (tmp_path / field).write_text(f"{text}\n")
        tool.write_text(f'#!/bin/sh\n[ "$1" = -L ] && echo "GPU 0: H100" || cat "{tmp_path}/${{1#*=}}"\n')
        tool.chmod(0o755)

    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine("580.65.06", "[N/A]")
    assert ray_cluster.gpu_memory_gib() == pytest.approx(45, abs=0.1) and ray_cluster.gpu_fault() is None
    machine("550.54.15", "Disabled")
    named(ray_cluster.gpu_fault() or "", "550", "580")
    machine("580.65.06", "Enabled")
    named(ray_cluster.gpu_fault() or "", "MIG", "CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-3f1a")
    assert ray_cluster.gpu_fault() is None


@pytest.mark.parametrize(
    ("gpus", "counts"),
    [((8,), (8, 8)), ((8, 8), (16, 16)), ((3,), (3, 2)), ((6, 6), (12, 8)), ((0,), (1, 1)), ((), (1, 1))],
)
def test_open_counts_are_those_of_the_gpus(gpus: tuple[int, ...], counts: tuple[int, int]) -> None:
    """A worker for each GPU, as far as the batch of 64 pairs can be divided by them."""
    words = ["hardware=cuda", "trainer.global_batch=64", "prompts.per_iteration=640"]
    hardware = load(words, gpus).hardware
    assert (hardware.annotators, hardware.workers) == counts and hardware.engines is None
    chosen = load([*words, "hardware.workers=4", "hardware.annotators=5"], gpus).hardware
    assert (chosen.annotators, chosen.workers) == (5, 4)


def test_the_gpus_of_a_cluster_are_those_of_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray_cluster, "check_address", lambda address: [{"CPU": 4.0}, {"CPU": 64.0, "GPU": 8.0}])
    assert ray_cluster.gpus_by_machine() == (0, 8)


@pytest.mark.parametrize(
    ("profile", "code"), [(["hardware=cuda"], 2), (["hardware=h100x8", *EIGHT], 0), (["hardware=cpu"], 0)]
)
def test_a_plan_for_this_machine_is_refused_and_one_for_another_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], profile: list[str], code: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster, "gpu_count", lambda: 0)
    monkeypatch.setattr(cli_plan, "plan_of", lambda arms, assume: plan_of(*profile, f"paths.store={tmp_path}"))
    assert main(["plan", *profile]) == code
    shown = capsys.readouterr()
    assert "steps, " in shown.out
    assert ("policy.tensor_parallel=1" in shown.err) == (code == 2)
    assert ("this machine cannot run it" in shown.out) == (profile[0] == "hardware=h100x8")


def test_the_memory_of_a_clusters_machines_is_what_ray_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's is that of the smallest by the name of its type; of a type that is not known, nothing is known."""
    head = {"CPU": 4.0, "memory": 16 * 2.0**30, "node:10.0.0.1": 1.0}
    worker = {"CPU": 64.0, "GPU": 8.0, "memory": 512 * 2.0**30, "accelerator_type:A100": 1.0}
    other = {"CPU": 64.0, "GPU": 8.0, "accelerator_type:X": 1.0}
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray_cluster, "check_address", lambda address: [head, worker, other])
    assert ray_cluster.known_machines() == [
        {"CPU": 4, "GPU": 0, "GB": 16},
        {"CPU": 64, "GPU": 8, "GB": 512, "GPU_GB": 40},
        {"CPU": 64, "GPU": 8},
    ]


def test_with_a_bucket_a_training_is_refused_where_the_driver_cannot_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray_cluster, "check_address", lambda address: [NODE_OF_8, NODE_OF_8])
    monkeypatch.setattr(ray_cluster, "this_machine", lambda: NODE_OF_8)
    words = ["hardware=cuda", "hardware.workers=16", *SIXTEEN]
    for store, fits in (("paths.store=store", True), ("paths.store=s3://bucket/prefix", False)):
        plan = plan_of(*words, store)
        states = {name: State(kind="miss") for name in plan.steps}
        if fits:
            check_here(plan, states)
        else:
            with refused(ConfigError, "train-", "hardware.workers=16", "this machine"):
                check_here(plan, states)
