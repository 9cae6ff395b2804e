"""`sparring`, which writes what Ray knows of its job before it leaves: python -m tests.faults.watched FILE run ..."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sparring.pipeline import cli
from sparring.pipeline.execution import ray_cluster


def main() -> int:
    """Run the command line that follows the file."""
    stop, file = ray_cluster.stop_ray, Path(sys.argv[1])

    def noted() -> None:
        import ray

        client: Any = ray._private.worker.global_worker
        jobs = client.gcs_client.get_all_job_info()
        file.write_text(f"{jobs}\n{ray._private.state.actors()}\n{ray.nodes()}", encoding="utf-8")
        stop()

    ray_cluster.stop_ray = noted
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
