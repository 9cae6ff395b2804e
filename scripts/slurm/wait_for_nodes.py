"""Waits until the Ray cluster of RAY_ADDRESS has a number of nodes.

    python -m scripts.slurm.wait_for_nodes NODES SECONDS

Exit code 1, with a message, where it has fewer after so many seconds.
"""

from __future__ import annotations

import os
import sys
import time

from sparring.pipeline.execution import ray_cluster
from sparring.stages.errors import ConfigError

PAUSE_S, REPORT_S = 1.0, 30.0
"""Seconds between two questions, and between two lines that say what is waited for."""


def wait(address: str, nodes: int, limit_s: float) -> int:
    """Return the exit code: 0 once the cluster at `address` has `nodes` nodes, 1 where that takes longer."""
    begun = reported = time.monotonic()
    while True:
        try:
            joined, why = len(ray_cluster.ask(address)), ""
        except ConfigError as error:
            joined, why = 0, f" ({error})"
        waited = time.monotonic() - begun
        state = f"{joined} of {nodes} nodes have joined Ray at {address} after {waited:.0f} s"
        if joined >= nodes:
            print(state, file=sys.stderr)
            return 0
        if waited > limit_s:
            print(f"{state}{why}; Ray's own messages are in the log of each node", file=sys.stderr)
            return 1
        if time.monotonic() - reported > REPORT_S:
            print(f"{state}, at most {limit_s:.0f} s", file=sys.stderr)
            reported = time.monotonic()
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    sys.exit(wait(os.environ["RAY_ADDRESS"], int(sys.argv[1]), float(sys.argv[2])))
