"""Whether the workers of a plan's steps fit on the machines there are: checked before anything is made.

A worker takes its cores and GPUs on one machine. The workers of a training take theirs at the same time, and those of a
pool do where there is but one machine; on a cluster there are as many of them as it holds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

from sparring.pipeline.planning.plan import Step
from sparring.stages.errors import ConfigError
from sparring.stages.sample.config import SampleSettings
from sparring.stages.step import Workers

Node = Mapping[str, float]
"""Resources of a machine by Ray's names: {"CPU": 16, "GPU": 8}; GB: its memory, where that is known."""

COUNTS = {"engines": "hardware.engines", "annotators": "hardware.annotators", "train": "hardware.workers"}
"""Workers -> the configuration key that says how many there are."""
KEYS = {
    "engines": {"CPU": "hardware.cores_per_engine", "GPU": "policy.tensor_parallel", "GB": "hardware.kv_cache_gb"},
    "annotators": {"CPU": "hardware.annotator_cpus", "GPU": "hardware.annotator_gpus"},
    "train": {"CPU": "hardware.worker_cpus", "GPU": "hardware.worker_gpus"},
}
"""Workers -> resource -> the configuration key that says how much of it one takes."""


def check_placement(steps: Iterable[Step], nodes: Sequence[Node], where: str, *, alone: bool = False) -> None:
    """ConfigError where the workers of a step can never be placed; light steps, which run in no worker, fit anywhere.

    where: `this machine` or the cluster's name. alone: it is one machine, which must hold all workers of a pool.
    """
    for step in steps:
        is_training = bool(step.spec.run)
        workers = "train" if is_training else step.spec.pool
        if workers not in KEYS:
            continue
        takes = {"CPU": step.workers.cpus, "GPU": step.workers.gpus}
        settings = step.settings
        if isinstance(settings, SampleSettings) and settings.sampler.engine == "vllm" and not takes["GPU"]:
            takes["GB"] = settings.hardware.kv_cache_gb
        takes = {kind: n for kind, n in takes.items() if n}
        count = (step.workers.count or 1) if is_training or alone else 1
        if not takes or sum(_most_workers(node, takes) for node in nodes) >= count:
            continue
        keys = ", ".join(f"{KEYS[workers][kind]}={n}" for kind, n in takes.items())
        what = f"{COUNTS[workers]}={count} with {keys} each" if count > 1 else keys
        resources = " + ".join(map(_amounts, nodes)) or "no live node"
        raise ConfigError(
            f"{step.name} can never be placed: {what}, but {where} has {resources}. Lower these keys, choose another "
            "hardware=..., or join a cluster that has them (RAY_ADDRESS)."
        )


def processes_on(node: Node, workers: Workers) -> int:
    """Return how many processes of a step a machine gets at most."""
    takes = {kind: n for kind, n in (("CPU", workers.cpus), ("GPU", workers.gpus)) if n}
    most = _most_workers(node, takes)
    return min(most, workers.count or most)


def _most_workers(node: Node, takes: Mapping[str, int]) -> int:
    """Return how many workers a machine holds at the same time; memory that is not known is enough."""
    limits = [int(node.get(kind, 0) // n) for kind, n in takes.items() if kind in node or kind != "GB"]
    return min(limits, default=sys.maxsize)


def _amounts(node: Node) -> str:
    memory = f" and {node['GB']:.0f} GB" if "GB" in node else ""
    return f"{node.get('CPU', 0):.0f} CPUs, {node.get('GPU', 0):.0f} GPUs{memory}"
