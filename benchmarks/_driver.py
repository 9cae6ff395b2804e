"""The driver of the benchmarks at scale: the real Executor on a plan whose models are stand-ins.

    _driver.py PLAN UNTIL SPAWNED     PLAN: a pickled (Plan, folder); UNTIL: `end`, `half` (of the shards) or `first`
                                      (shard handed out); SPAWNED: time.time() when this process was asked for

The last line of stdout is {"seconds", "handed_out", "start_mb", "peak_mb", "worker_mb", "memory": [(shards done, MB)],
"parts": {what: seconds}, "steps": {kind: {"stats", "rows", "wall"}}}; worker_mb is the peak of the largest process that
made shards.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks._process import memory_mb, timed
from sparring.pipeline import execute, pool
from sparring.pipeline.artifact import Manifest
from sparring.pipeline.events import Events
from sparring.pipeline.execute import Executor
from sparring.pipeline.planning.plan import Plan, Step


class Enough(Exception):
    """The driver is to stop here."""


class Watch(Events):
    """The run's events, with the driver's memory at each; stops the run where it is told to."""

    def __init__(self, path: Path, until: str) -> None:
        super().__init__(path, path.with_suffix(".txt").open("a", encoding="utf-8"))
        self.until, self.handed_out, self.worker_mb = until, 0.0, 0.0
        self.memory: list[tuple[int, float]] = []
        self.workers: set[int] = set()
        self.begun = 0.0
        self.walls: dict[str, float] = {}

    def __call__(self, event: str, **fields: Any) -> None:
        super().__call__(event, **fields)
        if event == "step_started":
            self.begun = time.monotonic()
        if event in ("shard", "step_done"):
            self.worker_mb = max([self.worker_mb, *map(_peak_mb, self.workers)])
        if event == "step_done":
            self.walls[fields["kind"]] = time.monotonic() - self.begun
        if event == "worker":
            self.workers.add(fields["pid"])
            # Told when the actor answers, right before the shards are given to it.
            self.handed_out = self.handed_out or time.time()
            self._stop("first")
        if event == "shard":
            self.memory.append((fields["done"], memory_mb("VmRSS")))
            if 2 * fields["done"] >= fields["of"]:
                self._stop("half")

    def _stop(self, moment: str) -> None:
        if self.until == moment:
            raise Enough


def _peak_mb(process: int) -> float:
    try:
        return memory_mb("VmHWM", process)
    except (OSError, StopIteration):  # it has ended
        return 0.0


def main(path: str, until: str, spawned: str) -> None:
    """Execute the plan and say what it took."""
    start_mb = memory_mb("VmRSS")
    plan: Plan
    plan, folder = pickle.loads(Path(path).read_bytes())
    watch = Watch(folder / "events.jsonl", until)
    manifests: list[Manifest] = []

    def on_done(step: Step, manifest: Manifest) -> None:
        manifests.append(manifest)

    executor = Executor(
        plan=plan, store=folder / "store", run="bench", scratch=folder / "scratch", events=watch, on_done=on_done
    )
    parts: dict[str, float] = {}
    for owner, name in ((execute.cluster, "start_ray"), (execute, "finished_parts"), (execute, "publish")):
        timed(owner, name, parts)
    timed(pool, "finish", parts)
    with suppress(Enough):
        executor.execute()
    found = {
        "seconds": time.time() - float(spawned),
        "handed_out": watch.handed_out - float(spawned),
        "start_mb": start_mb,
        "peak_mb": memory_mb("VmHWM"),
        "worker_mb": watch.worker_mb,
        "memory": watch.memory,
        "parts": parts,
        "steps": {one.step: {"stats": one.stats, "rows": one.rows, "wall": watch.walls[one.step]} for one in manifests},
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
