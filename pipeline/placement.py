"""Whether the workers of a plan's steps fit on the machines there are: asked before anything is made.

A pool's worker takes its cores and GPUs on one machine; the workers of a training take theirs at the same time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import cluster
from pipeline.errors import ConfigError
from pipeline.plan import Step

Node = Mapping[str, float]
"""Resources of a machine by Ray's names: {"CPU": 16, "GPU": 8}."""

KEYS = {
    "engines": {"CPU": "hardware.cores_per_engine", "GPU": "policy.tensor_parallel"},
    "annotators": {"CPU": "hardware.annotator_cpus", "GPU": "hardware.annotator_gpus"},
    "train": {"CPU": "hardware.worker_cpus", "GPU": "hardware.worker_gpus"},
}
"""Who asks -> resource -> the configuration key that says how many."""


@dataclass(frozen=True)
class Demand:
    """What a step must have at the same time: `workers` of them, each with `each` on one machine."""

    step: str
    owner: str
    """A key of KEYS."""
    workers: int
    each: Mapping[str, int]


def demand_of(step: Step) -> Demand | None:
    """Return what a step must have at the same time; None for a light step."""
    trains = bool(step.spec.run)
    owner = "train" if trains else step.spec.pool
    if owner not in KEYS:
        return None
    settings: Mapping[str, Any] = step.runtime
    each = {"CPU": int(settings["cpus"]), "GPU": int(settings["gpus"])}
    return Demand(step.name, owner, int(settings["workers"]) if trains else 1, {k: n for k, n in each.items() if n})


def fitting(demand: Demand, nodes: Sequence[Node]) -> int:
    """Return how many of a demand's workers the machines hold at the same time."""
    return sum(min(int(node.get(kind, 0) // n) for kind, n in demand.each.items()) for node in nodes)


def check_placement(steps: Iterable[Step], nodes: Sequence[Node], where: str) -> None:
    """ConfigError where the workers of a step can never be placed; where: `this machine` or the cluster's name."""
    there = " + ".join(_amounts(node) for node in nodes) or "no live node"
    for demand in filter(None, map(demand_of, steps)):
        if not demand.each or fitting(demand, nodes) >= demand.workers:
            continue
        keys = ", ".join(f"{KEYS[demand.owner][kind]}={n}" for kind, n in demand.each.items())
        workers = f"hardware.workers={demand.workers} with {keys} each" if demand.owner == "train" else keys
        raise ConfigError(
            f"{demand.step} can never be placed: {workers}, but {where} has {there}. Lower these keys, choose another "
            "hardware=..., or join a cluster that has them (RAY_ADDRESS)."
        )


def this_machine() -> list[Node]:
    """Return the resources that Ray gets when it is started on this machine."""
    return [{"CPU": os.cpu_count() or 1, "GPU": cluster.gpu_count()}]


def _amounts(node: Node) -> str:
    return f"{node.get('CPU', 0):.0f} CPUs and {node.get('GPU', 0):.0f} GPUs"
