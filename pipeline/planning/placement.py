"""Whether the workers of a plan's steps fit on the machines there are: asked before anything is made.

A worker takes its cores and GPUs on one machine. The workers of a training take theirs at the same time, and those of a
pool do where there is but one machine; on a cluster there are as many of them as it holds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparring.pipeline.planning.plan import Step
from sparring.stages.errors import ConfigError
from sparring.stages.sample.config import SampleSettings

Node = Mapping[str, float]
"""Resources of a machine by Ray's names: {"CPU": 16, "GPU": 8}; GB: its memory, where that is known."""

COUNTS = {"engines": "hardware.engines", "annotators": "hardware.annotators", "train": "hardware.workers"}
KEYS = {
    "engines": {"CPU": "hardware.cores_per_engine", "GPU": "policy.tensor_parallel", "GB": "hardware.kv_cache_gb"},
    "annotators": {"CPU": "hardware.annotator_cpus", "GPU": "hardware.annotator_gpus"},
    "train": {"CPU": "hardware.worker_cpus", "GPU": "hardware.worker_gpus"},
}
"""Who asks -> resource -> the configuration key that says how many; COUNTS: how many ask."""


@dataclass(frozen=True)
class Demand:
    """What a step must have at the same time: `workers` of them, each with `each` on one machine."""

    step: str
    owner: str
    """A key of KEYS."""
    workers: int
    each: Mapping[str, int]


def demand_of(step: Step, alone: bool) -> Demand | None:
    """Return what a step must have at the same time; None for a light step. alone: on one machine, no cluster."""
    trains = bool(step.spec.run)
    owner = "train" if trains else step.spec.pool
    if owner not in KEYS:
        return None
    each = {"CPU": step.workers.cpus, "GPU": step.workers.gpus}
    settings = step.settings
    if isinstance(settings, SampleSettings) and settings.sampler.engine == "vllm" and not each["GPU"]:
        each["GB"] = settings.hardware.kv_cache_gb
    workers = (step.workers.count or 1) if trains or alone else 1
    return Demand(step.name, owner, workers, {k: n for k, n in each.items() if n})


def fitting(demand: Demand, nodes: Sequence[Node]) -> int:
    """Return how many of a demand's workers the machines hold at the same time."""
    amounts = (
        [(node.get(kind, math.inf if kind == "GB" else 0), n) for kind, n in demand.each.items()] for node in nodes
    )
    return sum(int(min(there // n if there < math.inf else sys.maxsize for there, n in one)) for one in amounts)


def check_placement(steps: Iterable[Step], nodes: Sequence[Node], where: str, *, alone: bool = False) -> None:
    """ConfigError where the workers of a step can never be placed; where: `this machine` or the cluster's name."""
    there = " + ".join(_amounts(node) for node in nodes) or "no live node"
    for demand in filter(None, (demand_of(step, alone) for step in steps)):
        if not demand.each or fitting(demand, nodes) >= demand.workers:
            continue
        keys = ", ".join(f"{KEYS[demand.owner][kind]}={n}" for kind, n in demand.each.items())
        many = f"{COUNTS[demand.owner]}={demand.workers} with {keys} each" if demand.workers > 1 else keys
        raise ConfigError(
            f"{demand.step} can never be placed: {many}, but {where} has {there}. Lower these keys, choose another "
            "hardware=..., or join a cluster that has them (RAY_ADDRESS)."
        )


def _amounts(node: Node) -> str:
    memory = f" and {node['GB']:.0f} GB" if "GB" in node else ""
    return f"{node.get('CPU', 0):.0f} CPUs, {node.get('GPU', 0):.0f} GPUs{memory}"
