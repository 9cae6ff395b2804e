"""A prompt that kills, breaks or hangs its engine is found, dropped and counted; nothing else is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparring.pipeline.execution import fault_policy, nodes, ray_cluster
from sparring.pipeline.execution.actor_pool import ActorPool, side_by_side
from sparring.stages.errors import DataError, EngineFault, SparringError
from sparring.stages.sample import stage
from sparring.stages.sample.config import SAMPLE
from sparring.stages.step import Job, Shard, Workers
from tests.artifacts import as_job
from tests.faults.poison import SICK
from tests.refusals import refused
from tests.stages.sample.jobs import jsonl, prompts_input, sample_job

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module", autouse=True)
def ray_started() -> Iterator[None]:
    import ray

    from sparring.pipeline.execution import ray_cluster

    ray_cluster.start_ray(0)
    yield
    ray.shutdown()


def light_job(folder: Path, how: str, sick: list[int], deadline_s: float = 600.0, actors: int = 1) -> Job:
    spec = replace(SAMPLE, worker="tests.faults.poison:Light", finish="", prepare="", at_once="")
    made = as_job(spec, {"how": how, "sick": sick}, [], folder)
    made.out.mkdir(parents=True)
    return replace(made, workers=Workers(count=actors, deadline_s=deadline_s))


def shards(rows: int, size: int) -> list[Shard]:
    places = list(range(rows))
    cut = [places[a : a + size] for a in range(0, rows, size)]
    return [Shard(index=i, payload={"rows": part, "deals": [0] * len(part)}) for i, part in enumerate(cut)]


def play(job: Job, todo: list[Shard]) -> tuple[dict[int, dict[str, Any]], list[str], list[int]]:
    """Return records by shard, what was said, and the pids; the processes are gone at the end."""
    said: list[str] = []
    pids: list[int] = []
    pool = ActorPool(job, len(todo))
    try:
        records = dict(pool.map(job, todo, lambda vitals: pids.append(vitals["pid"]), said.append))
    finally:
        pool.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    return records, said, pids


def ids(job: Job, records: dict[int, dict[str, Any]]) -> list[str]:
    tables = [pq.read_table(job.out / records[i]["file"]["path"]) for i in sorted(records)]
    return [name for table in tables for name in table["id"].to_pylist()]


@pytest.mark.parametrize("how", ["die", "raise", pytest.param("hang", marks=pytest.mark.slow)])
def test_the_prompts_at_fault_are_dropped(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_policy, "FLOOR_S", 4.0)
    job = light_job(tmp_path, how, sick=[1, 6], deadline_s=6.0 if how == "hang" else 600.0, actors=2)
    records, said, pids = play(job, shards(12, 4))
    assert ids(job, records) == [str(i) for i in range(12) if i not in (1, 6)]
    assert [records[i]["dropped"] for i in range(3)] == [{"poison": 1}, {"poison": 1}, {}]
    assert [records[i]["rows_in"] for i in range(3)] == [4, 4, 4]
    assert any("rows 1; they are dropped" in text for text in said)
    assert any("rows 6; they are dropped" in text for text in said)
    assert len(pids) > 2
    if how == "hang":
        assert any("it took longer than 6 s (hardware.shard_deadline_s) and was ended" in text for text in said)


def test_what_shares_a_worker_with_a_prompt_at_fault_is_done_alone_and_kept(tmp_path: Path) -> None:
    job = light_job(tmp_path, "die together", sick=[5])
    job = replace(job, spec=replace(job.spec, at_once="tests.faults.poison:three"))
    job.scratch.mkdir()
    records, said, pids = play(job, shards(12, 2))
    assert ids(job, records) == [str(i) for i in range(12) if i != 5]
    assert [records[i]["dropped"] for i in range(6)] == [{}, {}, {"poison": 1}, {}, {}, {}]
    assert sum("are dropped and counted as poison" in text for text in said) == 1 and len(set(pids)) > 2
    at_once = (job.scratch / "at-once").read_text().split()
    assert max(at_once) == "3" and at_once.count("1") >= 4, "together at first, then one by one"


def test_a_worker_killed_once_loses_nothing(tmp_path: Path) -> None:
    job = light_job(tmp_path, "die once", sick=[5])
    job.scratch.mkdir()
    records, said, _ = play(job, shards(24, 8))
    assert ids(job, records) == [str(i) for i in range(24)]
    assert [text.partition(": ")[2] for text in said] == [
        "shard 0: its worker died (out of memory, or killed); it is done again"
    ]


def test_what_a_stage_warns_of_while_it_loads_is_said_once(tmp_path: Path) -> None:
    job = light_job(tmp_path, "warn", sick=[], actors=2)
    _, said, pids = play(job, shards(8, 1))
    assert said == [f"{job.out.name}: a slower way is taken"] and len(pids) == 2


@pytest.mark.parametrize("rows", [3, 4, 64])
def test_an_engine_that_always_fails_is_no_prompts_fault(tmp_path: Path, rows: int) -> None:
    """It ends after two tries and two probes of single prompts, with the engine's own words."""
    said: list[str] = []
    job = light_job(tmp_path, "raise", sick=list(range(rows)))
    pool = ActorPool(job, rows)
    with pytest.raises(EngineFault, match="not the prompts: the engine failed: CUDA error: an illegal memory access"):
        dict(pool.map(job, shards(rows, 16), lambda pid: None, said.append))
    pool.close()
    assert [text.partition(": ")[2].partition(":")[0] for text in said] == [
        "shard 0",
        "shard 0",
        f"1 prompt of shard {0 if rows < 33 else 1} alone",
        f"1 prompt of shard {0 if rows < 33 else 2} alone",
    ]
    assert len((job.scratch / "loads").read_text()) == 4


def test_a_worker_that_dies_while_it_loads_is_no_prompts_fault(tmp_path: Path) -> None:
    job = light_job(tmp_path, "die loading", sick=[])
    job = replace(job, workers=replace(job.workers, max_failures=1))
    job.scratch.mkdir()
    said: list[str] = []
    pool = ActorPool(job, 2)
    try:
        with pytest.raises(EngineFault, match="failed 2 times while it loaded its models, before any prompt"):
            dict(pool.map(job, shards(8, 4), lambda pid: None, said.append))
    finally:
        pool.close()
    assert len(said) == 1 and "while it loaded its models, its worker died" in said[0]
    assert len((job.scratch / "loads").read_text()) == 2


def test_a_full_disk_is_one_line_and_no_second_try(tmp_path: Path) -> None:
    job = light_job(tmp_path, "disk full", sick=[])
    job.scratch.mkdir()
    with pytest.raises(DataError, match="the disk is full"):
        play(job, shards(4, 4))
    assert len((job.scratch / "loads").read_text()) == 1


def light_task(folder: Path, how: str) -> Job:
    """A step without actors, of which Ray itself does a task again."""
    made = light_job(folder, how, sick=[5])
    made.scratch.mkdir()
    return replace(made, spec=replace(made.spec, pool="tasks"), workers=Workers(max_failures=1))


def test_a_light_task_that_dies_names_how_often_it_was_tried(tmp_path: Path) -> None:
    job = light_task(tmp_path, "die")
    with refused(EngineFault, job.out.name, "shard 1", "2 times", "hardware.max_failures"):
        play(job, shards(8, 4))
    assert len((job.scratch / "loads").read_text()) == 1 + 2


def test_a_bug_names_its_step_and_shard_and_is_in_the_logs(tmp_path: Path) -> None:
    job = light_task(tmp_path, "bug")
    with refused(SparringError, f"{job.out.name}: shard 1 ", "ValueError: no such row; ", str(job.scratch)):
        play(job, shards(8, 4))
    (log,) = job.scratch.glob(f"{job.out.name}-errors.log")
    assert "poison.py" in log.read_text(encoding="utf-8")


def test_more_than_a_few_prompts_are_not_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_policy, "MOST_POISON", 1)
    with pytest.raises(EngineFault, match="more than 1 prompts of shard 0 fail, so it is not the prompts"):
        play(light_job(tmp_path, "raise", sick=[0, 1, 2]), shards(4, 4))


def test_workers_that_find_no_room_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster with fewer cores than the plan thought, some of them held by others."""
    import ray

    monkeypatch.setattr(ray_cluster, "joined", lambda: True)
    nodes.join([tmp_path], "of this test")
    monkeypatch.setattr("sparring.stages.patience.SILENCE_S", 0.5)
    cores = int(ray.cluster_resources()["CPU"])
    made = light_job(tmp_path, "die", sick=[], actors=10 * cores)
    job = replace(made, workers=replace(made.workers, cpus=1))
    assert side_by_side(job) == cores
    other: Any = ray.remote(num_cpus=cores - 0.5)(Sleeper).remote()
    ray.get(other.ping.remote())
    pool = ActorPool(job, 100)
    said: list[str] = []
    todo = shards(8, 2)
    try:
        found = pool.map(job, todo, lambda pid: None, said.append)
        Thread(target=lambda: (time.sleep(3), ray.kill(other))).start()
        assert len(dict(found)) == len(todo)
    finally:
        pool.close()
    assert any(
        "no worker answers yet: it still starts, or waits for 1 CPUs and 0 GPUs that others hold" in text
        for text in said
    )


def test_a_step_that_ends_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr("sparring.stages.patience.SILENCE_S", 0.0)
    job = light_job(tmp_path, "die", sick=[])
    pool = ActorPool(job, 1)
    ray.get([actor.process.remote() for actor in pool.actors])
    said: list[str] = []
    try:
        assert dict(pool.map(job, shards(2, 2), lambda pid: None, said.append))
    finally:
        pool.close()
    assert not any("no worker answers" in text for text in said)


class Sleeper:
    def ping(self) -> None:
        pass


@pytest.mark.slow
def test_a_real_engine_killed_by_a_prompt(tmp_path: Path, policy: Path) -> None:
    texts = [f"Question {i}: what is {i} + {i}?" for i in range(12)]
    texts[7] = f"{SICK} is in this one."
    prompts = prompts_input(jsonl(tmp_path / "p.jsonl", texts), policy)
    job = sample_job(prompts, policy, engine="transformers", k=2, rows=8, shard_rows=4)
    todo = stage.shards(job)
    well = replace(job, out=tmp_path / "well", scratch=tmp_path / "logs")
    sick = replace(job, spec=replace(SAMPLE, worker="tests.faults.poison:Poisoned"), out=tmp_path / "sick")
    tables = []
    for one in (well, replace(sick, scratch=tmp_path / "logs")):
        one.out.mkdir()
        records, _, _ = play(one, todo)
        parts = [pq.read_table(one.out / records[i]["file"]["path"]) for i in sorted(records)]
        tables.append(pa.concat_tables(parts).to_pylist())
        assert sum(records[i]["rows_in"] for i in records) == 8
    lost = [row for row in tables[0] if row["messages"][-1]["content"].startswith(SICK)]
    assert len(lost) == 1 and tables[1] == [row for row in tables[0] if row not in lost]
