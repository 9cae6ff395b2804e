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


STARTS_RAY = (
    "tests/faults/",
    "tests/pipeline/test_cluster.py",
    "tests/pipeline/test_crossplay_run.py",
    "tests/pipeline/test_import.py",
    "tests/stages/train/test_resilience.py",
    "tests/stages/train/test_stage.py",
)


class OneRay(LoadFileScheduling):
    """Deals files to processes; those that start Ray go to one of them, which does them first."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid.startswith(STARTS_RAY) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneRay:
    """Schedule by OneRay: markers of groups are not seen by pytest-xdist 3.8 under pytest 9.2."""
    return OneRay(config, log)
