"""The RayJob runs what the package has: its command is a configuration, its Ray the lock's; its pods close /metrics."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from sparring.pipeline.config import load

ROOT = Path(__file__).parents[2]
JOB = yaml.safe_load((ROOT / "scripts" / "kuberay" / "rayjob.yaml").read_text(encoding="utf-8"))["spec"]


def test_the_entrypoint_is_a_configuration() -> None:
    program, command, *words = shlex.split(JOB["entrypoint"])
    config = load(words, (8, 8))
    assert (program, command) == ("sparring", "run") and config.hardware.workers == 16
    for pod in pods():
        mounted = [Path(mount["mountPath"]) for mount in pod["containers"][0]["volumeMounts"]]
        for place in (config.paths.store, config.paths.runs):
            assert any(Path(place).is_relative_to(one) for one in mounted)


def test_its_ray_is_the_locks() -> None:
    for name in ("cpu.txt", "cuda.txt"):
        lock = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        assert re.findall(r"^ray==(\S+)", lock, re.MULTILINE) == [JOB["rayClusterSpec"]["rayVersion"]]


def test_no_pod_has_metrics_and_all_have_the_token() -> None:
    assert JOB["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for pod in pods():
        assert {"name": "RAY_enable_metrics_collection", "value": "0"} in pod["containers"][0]["env"]


def pods() -> list[dict[str, Any]]:
    """The pods of the head and of each group of workers."""
    cluster = JOB["rayClusterSpec"]
    return [one["template"]["spec"] for one in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
