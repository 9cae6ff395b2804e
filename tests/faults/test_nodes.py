"""A pool on real Ray nodes: one is lost, one joins late, one is not fit to work, none is left."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from sparring.pipeline.execution import actor_pool, nodes, ray_cluster
from sparring.pipeline.execution.actor_pool import ActorPool
from sparring.stages.errors import ConfigError, SparringError
from sparring.stages.step import Job
from tests.faults.cluster import ENVIRONMENT, Cluster, cluster
from tests.faults.test_poison import light_job, shards
from tests.refusals import refused

pytestmark = [pytest.mark.faults, pytest.mark.slow]
as_root = pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")


@contextmanager
def joined(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cores: tuple[int, ...] = (1, 1), words: tuple[str, ...] = ()
) -> Iterator[Cluster]:
    """A cluster that this process has joined."""
    import ray

    with cluster(folder, cores, words) as made:
        for name, value in {**ENVIRONMENT, "RAY_ADDRESS": made.address}.items():
            monkeypatch.setenv(name, value)
        ray_cluster.start_ray(0)
        try:
            yield made
        finally:
            ray.shutdown()


def slow_job(folder: Path, gpus: int = 0) -> Job:
    """A second a shard, as many actors as there are cores."""
    made = light_job(folder, "slow", sick=[], actors=0)
    return replace(made, workers=replace(made.workers, cpus=1, gpus=gpus))


def names_of(pool: ActorPool) -> list[str]:
    """Names of the nodes that a pool's processes are on."""
    import ray

    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
    return sorted(names[process.node] for process in pool.process_of.values())


def test_a_pool_goes_on_without_a_lost_node_and_takes_one_that_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second passes without a result for long, no shard is lost or counted as failed, all processes end."""
    said: list[str] = []
    pids: list[int] = []
    with joined(tmp_path, monkeypatch) as two:
        nodes.join([tmp_path], two.address)
        job, todo = slow_job(tmp_path), shards(60, 1)
        pool, records, when = ActorPool(job, len(todo)), {}, [time.monotonic()]
        for index, record in pool.map(job, todo, lambda vitals: pids.append(vitals["pid"]), said.append):
            records[index] = record
            when.append(time.monotonic())
            if len(records) == 6:
                assert names_of(pool) == ["node-0", "node-1"]
                two.nodes[1].kill()
            if len(records) == 30:
                two.start()
        assert sorted(records) == list(range(60))
        assert names_of(pool) == ["node-0", "node-2"], said
        assert max(b - a for a, b in itertools.pairwise(when[6:])) < 8.0, said
        assert f"the node {two.host} of the cluster is gone" in said
        assert f"the node {two.host} has joined and gets work" in said
        pool.close()
        assert len(pids) == 3 and not any(psutil.pid_exists(pid) for pid in pids)


def test_a_pool_without_a_node_waits_and_says_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_pool, "LOST_S", 5.0)
    said: list[str] = []
    with joined(tmp_path, monkeypatch, cores=(0, 1)) as two:
        nodes.join([tmp_path], two.address)
        job, todo = slow_job(tmp_path), shards(60, 1)
        pool = ActorPool(job, len(todo))
        begun = 0.0
        with refused(SparringError, job.out.name, "no node", "1 CPUs", "5 s", "resume"):
            for _ in pool.map(job, todo, lambda pid: None, said.append):
                if not begun:
                    begun = time.monotonic()
                    two.nodes[1].kill()
        assert time.monotonic() - begun < 60
        assert f"the node {two.host} of the cluster is gone" in said
        pool.close()


def test_workers_of_several_gpus_are_never_split_over_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes that claim three GPUs each hold two groups of two, one a node. No GPU has run this."""
    with joined(tmp_path, monkeypatch, (2, 2), ("--num-gpus=3",)) as made:
        nodes.join([tmp_path], made.address)
        job, todo = slow_job(tmp_path, gpus=2), shards(8, 1)
        pool = ActorPool(job, len(todo))
        assert len(pool.actors) == 2
        assert len(dict(pool.map(job, todo, lambda pid: None, lambda text: None))) == len(todo)
        assert names_of(pool) == ["node-0", "node-1"]
        pool.close()


@as_root
def test_a_node_that_does_not_see_the_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the cluster is joined it is refused; a node that joins later gets no work."""
    store, said = tmp_path / "store", list[str]()
    store.mkdir()
    blind = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {store} && exec "$@"', "sh"]
    with joined(tmp_path, monkeypatch, cores=(1,)) as made:
        nodes.join([store], made.address)
        job, todo = slow_job(tmp_path), shards(40, 1)
        pool, records = ActorPool(job, len(todo)), dict[int, Any]()
        for index, record in pool.map(job, todo, lambda pid: None, said.append):
            records[index] = record
            if len(records) == 1:
                made.start(prefix=blind)
        assert len(records) == len(todo) and names_of(pool) == ["node-0"]
        assert any("has joined and gets no work" in text and str(store) in text for text in said), said
        pool.close()
        begun = time.monotonic()
        with refused(ConfigError, "1 of 2 nodes", made.host, str(store), "paths.store"):
            nodes.join([store], made.address)
        assert time.monotonic() - begun < 30
