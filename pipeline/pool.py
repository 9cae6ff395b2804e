"""A pool of workers on Ray for one step: shards handed out as workers come free, a dead worker restarted by Ray.

An actor loads its model at its first shard, so that an error in loading reaches the driver as itself and not as a
dead actor. Everything a worker prints goes to a file under the run.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

from pipeline import cluster
from pipeline.artifact import write_part
from pipeline.errors import SparringError
from pipeline.job import File, Input, Job, Shard

RESTARTS = 3
"""Times a shard is handed out again after its worker died, before the step fails."""
MODELS = ("policy", "judge", "encoder")
"""Input roles that a worker loads once and keeps."""


class Pool:
    """Workers of one step, and of the steps after it that they fit; `close` ends their processes."""

    def __init__(self, job: Job, shards: int) -> None:
        self.job = job
        self.loaded = False
        self.pids: set[int] = set()
        self.actors: list[Any] = []
        if job.spec.pool != "tasks":
            _placeable(job)
            # On this machine alone one step follows another, and a worker that waits for its step must not hold cores.
            reserved = job.runtime["cpus"] if cluster.joined() or job.runtime["gpus"] else 0
            options = ray.remote(
                num_cpus=reserved,
                num_gpus=job.runtime["gpus"],
                max_restarts=-1,
                max_task_retries=RESTARTS,
            )
            size = _wanted(job, shards)
            self.actors = [options(_Worker).remote(job, number) for number in range(size)]

    def fits(self, job: Job, shards: int) -> bool:
        """Return whether these workers can serve another step: as many of them, with the same settings.

        Engines, in addition, must have its models loaded.
        """
        same = (job.spec.pool, job.runtime) == (self.job.spec.pool, self.job.runtime)
        models = (job.spec, _models(job)) == (self.job.spec, _models(self.job))
        free = not self.loaded or job.spec.pool == "annotators"
        return bool(self.actors) and same and (free or models) and len(self.actors) >= _wanted(job, shards)

    def prepare(self) -> None:
        """Have the workers do, in the background, what their step lets them do before its inputs exist."""
        for actor in self.actors:
            actor.prepare.remote(self.job)

    def close(self) -> None:
        """End the workers and wait until their processes, and so their memory, are gone."""
        for actor in self.actors:
            ray.kill(actor)
        deadline = time.monotonic() + 20
        here = self.pids if self.actors and len(ray.nodes()) == 1 else set()
        while any(os.path.exists(f"/proc/{pid}") for pid in here) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.actors = []

    def map(self, job: Job, shards: list[Shard], worker: Callable[[int], None]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (shard index, record) as shards are done; `worker` is told each worker's pid, new ones too."""
        self.job, self.loaded = job, True
        hands: list[Any] = self.actors or [None] * min(len(shards), _light_workers())
        told = {_call(job, actor.pid.remote()) for actor in self.actors}
        for pid in sorted(told):
            worker(pid)
        waiting, running = iter(shards), {}
        for hand, shard in zip(hands, waiting, strict=False):
            running[self._submit(hand, shard)] = (hand, shard)
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            hand, shard = running.pop(ready[0])
            pid, record = _call(job, ready[0])
            if pid not in told:
                told.add(pid)
                worker(pid)
            yield shard.index, record
            following = next(waiting, None)
            if following:
                running[self._submit(hand, following)] = (hand, following)
        self.pids |= told

    def _submit(self, actor: Any, shard: Shard) -> Any:
        return actor.run.remote(self.job, shard) if actor else _light(_run_once).remote(self.job, shard)


def _wanted(job: Job, shards: int) -> int:
    return min(side_by_side(job), shards)


def side_by_side(job: Job) -> int:
    """Return how many workers the step has; one for every `gpus` GPUs of the cluster where it does not say."""
    if job.runtime["actors"]:
        return int(job.runtime["actors"])
    return max(1, int(ray.cluster_resources().get("GPU", 0)) // max(1, job.runtime["gpus"]))


def _models(job: Job) -> dict[str, str]:
    return {role: source.digest for role, source in job.inputs.items() if role in MODELS}


def finish(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the step's summary, computed in a task from the written parts, one at a time in memory."""
    return _call(job, _light(_finish).remote(job, records)) if job.spec.finish else {}


class _Worker:
    """An actor's process. The job comes with every shard: a restarted actor knows only its first one."""

    def __init__(self, job: Job, number: int) -> None:
        _quiet(job, number)
        os.environ["OMP_NUM_THREADS"] = str(job.runtime["cpus"])
        self.number, self.fingerprint = number, ""
        self.worker: Callable[[Shard], Any] | None = None

    def pid(self) -> int:
        return os.getpid()

    def prepare(self, job: Job) -> None:
        from pipeline.execute import resolve

        resolve(job.spec.prepare)(job)

    def run(self, job: Job, shard: Shard) -> tuple[int, dict[str, Any]]:
        begun = time.monotonic()
        if self.worker is None or self.fingerprint != job.fingerprint:
            if self.worker:
                self.worker = None
                _free_memory()
            _quiet(job, self.number)
            self.worker, self.fingerprint = _make(job), job.fingerprint
        part = self.worker(shard)
        return os.getpid(), write_part(job, shard, part, time.monotonic() - begun)


def _free_memory() -> None:
    """Give back what the last step's models held."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _light(function: Callable[..., Any]) -> Any:
    # No core is asked for: a pool that waits for its next step may hold them all, and these tasks are light.
    return ray.remote(num_cpus=0, max_retries=RESTARTS)(function)


def _run_once(job: Job, shard: Shard) -> tuple[int, dict[str, Any]]:
    _quiet(job, 0)
    begun = time.monotonic()
    return os.getpid(), write_part(job, shard, _make(job)(shard), time.monotonic() - begun)


def _finish(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    from pipeline.execute import resolve

    _quiet(job, 0)
    files = tuple(File(**record["file"]) for record in records)
    own = Input(role="own", root=job.out, digest="", files=files)
    return resolve(job.spec.finish)(job, (own.table(i) for i in range(len(files))), records)


def _make(job: Job) -> Callable[[Shard], Any]:
    from pipeline.execute import resolve

    return resolve(job.spec.worker)(job)


def _quiet(job: Job, number: int) -> None:
    """Send what this process prints to a file of its own under the run."""
    job.scratch.mkdir(parents=True, exist_ok=True)
    path = job.scratch / f"{job.out.name}-{number}-{os.getpid()}.log"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _call(job: Job, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, SparringError):
            raise error.cause from None
        raise SparringError(f"{job.out.name} failed: {error.cause!r}; details: {_logs(job)}") from error
    except (RayActorError, WorkerCrashedError, OutOfMemoryError):
        raise SparringError(
            f"{job.out.name}: a worker died {RESTARTS + 1} times (out of memory, or killed); details: {_logs(job)}. "
            "Run again to resume from the finished shards."
        ) from None


def _placeable(job: Job) -> None:
    """SparringError when no machine of the cluster has the cores or GPUs that one worker asks for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for resource, key in (("CPU", "cpus"), ("GPU", "gpus")):
        most = max((node.get(resource, 0) for node in nodes), default=0)
        if job.runtime[key] > most:
            raise SparringError(
                f"{job.out.name}: a worker asks for {job.runtime[key]} {resource}s, the largest node has {most:.0f}; "
                f"lower the {key} of hardware (see conf/hardware)."
            )


def _logs(job: Job) -> str:
    return f"{job.scratch}/{job.out.name}-*.log"


def _light_workers() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
