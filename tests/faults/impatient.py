"""`sparring`, to which a lease is dead that did not change for 5 s: python -m tests.faults.impatient run OVERRIDES."""

from __future__ import annotations

import sys

from sparring.pipeline import cli
from sparring.pipeline.store import lease

if __name__ == "__main__":
    lease.DEAD_AFTER_S = 5.0
    sys.exit(cli.main(sys.argv[1:]))
