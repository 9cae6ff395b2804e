"""The driver of benchmarks.scale: the real Executor on a step that does nothing.

    _scale_driver.py FOLDER SHARDS WORKERS

The last line of stdout is {"shard_cpu_s", "cpu_s", "once_s", "start_mb", "peak_mb", "seconds"}.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks._process import memory_mb, timed
from benchmarks._scale_standin import NOTHING, NothingSettings
from sparring.pipeline.execution import actor_pool, executor
from sparring.pipeline.execution.events import Events
from sparring.pipeline.execution.executor import Executor
from sparring.pipeline.planning.plan import Plan, Step, Use
from sparring.stages import fields
from sparring.stages.fingerprint import fingerprint
from sparring.stages.step import File, Input, Workers


class Watch(Events):
    """The run's events; `cpu` is the process's CPU time when the first worker answers and after each shard."""

    cpu: tuple[float, float] = (0.0, 0.0)

    def __call__(self, event: str, **fields: Any) -> None:
        super().__call__(event, **fields)
        now = time.process_time()
        if event == "worker":
            self.cpu = (self.cpu[0] or now, now)
        elif event == "shard":
            self.cpu = (self.cpu[0], now)


def plan_of(folder: Path, shards: int, workers: int) -> Plan:
    """Return a plan of one step, whose input has a part for each shard."""
    parts = tuple(
        File(name=f"part-{i:05d}.parquet", path=f"part-{i:05d}.aaaaaaaa.parquet", sha256=f"{i:064x}", bytes=100_000)
        for i in range(shards)
    )
    samples = Input(role="samples", root=folder, digest="0" * 64, files=parts)
    settings = NothingSettings(shards=shards)
    inputs = {"samples": samples.digest}
    step = Step(
        spec=NOTHING,
        settings=settings,
        workers=Workers(count=workers, cpus=0),
        inputs=inputs,
        fingerprint=fingerprint(NOTHING.kind, NOTHING.version, fields.identity(settings), inputs),
        uses=[Use(arm="", iteration=1, label="score")],
    )
    return Plan(steps={step.fingerprint: step}, externals={samples.digest: samples}, configs={})


def main(place: str, shards: str, workers: str) -> None:
    """Execute the step and say what it took."""
    folder = Path(place)
    start_mb, begun, once = memory_mb("VmRSS"), time.monotonic(), dict[str, float]()
    watch = Watch(folder / "events.jsonl", (folder / "events.txt").open("a", encoding="utf-8"))
    for owner, name in ((executor, "finished_parts"), (executor, "publish"), (actor_pool, "finish")):
        timed(owner, name, once)
    Executor(
        plan=plan_of(folder, int(shards), int(workers)),
        store=folder / "store",
        run="bench",
        scratch=folder / "scratch",
        events=watch,
        on_done=lambda step, manifest: None,
    ).execute()
    found = {
        "shard_cpu_s": (watch.cpu[1] - watch.cpu[0]) / int(shards),
        "cpu_s": time.process_time(),
        "once_s": sum(once.values()),
        "start_mb": start_mb,
        "peak_mb": memory_mb("VmHWM"),
        "seconds": time.monotonic() - begun,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
