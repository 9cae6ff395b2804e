"""What the driver costs with many shards and many workers: its CPU, its memory, and the delay that it adds to a shard.

    .venv/bin/python -m benchmarks.scale [--json FILE] [--shards 10000] [--workers 8 16 32] [--smallest]

The real Executor, ActorPool, shards, parts, records, finish and manifest, on Ray, around a step that does NOTHING: each
shard is a table of one row. Its input has as many parts as there are shards, as the step `score` has. A driver is a
process of its own. Delay per shard: CPU of the driver's process, all threads, between the first worker that answers and
the last shard; while it computes for one shard no other one can be handed out. Ray's own processes are not in it.

512 workers are EXTRAPOLATED, not measured: a line through the numbers of workers measured.

The workers share this machine's cores with the driver, so that wall time says little about a cluster.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks._parts import run_parts
from benchmarks._process import answer_of
from benchmarks._table import Row, parse, with_json

FAR = 512
"""Workers of a large cluster."""
SMALLEST = {"shards": 40, "workers": [2, 3]}


def main() -> int:
    """Run the benchmark; return 1 when it fails."""
    parser = with_json(__doc__)
    parser.add_argument("--shards", type=int, default=10_000, help="shards of the step")
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 16, 32], help="actors side by side")
    arguments = parse(parser, SMALLEST)
    return run_parts("scale", {"driver": partial(measure, arguments)}, arguments.json)


def measure(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Run a driver for each number of workers; return its figures, and those of FAR workers by a line through them."""
    rows: list[Row] = []
    delays: dict[int, float] = {}
    for workers in arguments.workers:
        place = folder / str(workers)
        place.mkdir()
        found = answer_of("_scale_driver", [str(place), str(arguments.shards), str(workers)], place / "log")
        case, delays[workers] = f"{arguments.shards:,} shards, {workers} workers", 1000 * found["shard_cpu_s"]
        rows += [
            Row(case, "delay per shard", delays[workers], "ms", aim=5),
            Row(case, "driver's CPU, whole step", found["cpu_s"], "s"),
            Row(case, "of it finish, manifest and what is done already", found["once_s"], "s"),
            Row(case, "driver's memory, peak over its start", found["peak_mb"] - found["start_mb"], "MB"),
            Row(case, "wall time of the step", found["seconds"], "s"),
        ]
    if len(delays) > 1:
        slope, at_none = np.polyfit(list(delays), list(delays.values()), 1)
        case = f"{arguments.shards:,} shards, {FAR} workers, EXTRAPOLATED"
        rows.append(Row(case, "delay per shard", float(at_none + FAR * slope), "ms", aim=5))
    return rows


if __name__ == "__main__":
    sys.exit(main())
