"""What every session prints first."""

from __future__ import annotations

import os
import random

from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
settings.load_profile("untimed")
SEED = os.environ.setdefault("SPARRING_SEED", str(random.SystemRandom().randrange(10**6)))


def pytest_report_header() -> str:
    """The seed of the kill tests, so that a failure can be repeated."""
    return f"kill tests: SPARRING_SEED={SEED} repeats them"
