"""What every session prints first."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
settings.load_profile("untimed")
SEED = os.environ.setdefault("SPARRING_SEED", str(random.SystemRandom().randrange(10**6)))


def pytest_report_header() -> str:
    """The seed of the kill tests, so that a failure can be repeated."""
    return f"kill tests: SPARRING_SEED={SEED} repeats them"


STARTS_RAY = {"ray_started", "undisturbed"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Under pytest-xdist tests that start Ray run one after another, those of a file in one process."""
    fixtures = STARTS_RAY & set(getattr(item, "fixturenames", ()))
    alone = fixtures or item.get_closest_marker("faults") or item.get_closest_marker("ray")
    item.add_marker(pytest.mark.xdist_group("ray" if alone else str(item.path)))
