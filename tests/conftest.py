"""What every session prints first."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
settings.load_profile("untimed")
os.environ.pop("COLUMNS", None)  # tables are as wide as those of a pipe
SEED = os.environ.setdefault("SPARRING_SEED", str(random.SystemRandom().randrange(10**6)))


def pytest_report_header() -> str:
    """The seed of the kill tests, so that a failure can be repeated."""
    return f"kill tests: SPARRING_SEED={SEED} repeats them"


STARTS_RAY = {
    "tests/faults/": "whole runs",
    "tests/pipeline/cli/test_stop.py": "whole runs",
    "tests/pipeline/execution/test_ray_cluster.py": "trainings",
    "tests/pipeline/test_crossplay_run.py": "trainings",
    "tests/pipeline/test_import.py": "trainings",
    "tests/scripts/test_slurm.py": "trainings",
    "tests/stages/train/test_resilience.py": "trainings",
    "tests/stages/train/test_stage.py": "trainings",
}
"""Beginning of a path -> which of the two processes that start Ray has it: they share what is slow to make."""


class TwoRays(LoadFileScheduling):
    """Deals files to processes; those that start Ray go to two of them, which do them first."""

    def _split_scope(self, nodeid: str) -> str:
        scopes = (scope for path, scope in STARTS_RAY.items() if nodeid.startswith(path))
        return next(scopes, super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TwoRays:
    """Schedule by TwoRays: markers of groups are not seen by pytest-xdist 3.8 under pytest 9.2."""
    return TwoRays(config, log)
