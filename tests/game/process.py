"""Plays games in a process of their own: one that has configured ZeRO-3 loads no other model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.game.finite import Array

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Played:
    """What `tests.game.play` says of one play."""

    policies: list[Array]
    """Log pi_0 ... log pi_T."""
    noise: float
    """Largest mean |h| before a round's first step: the folder that was published is the policy that was trained."""
    unconverged: float
    """Largest share of a round's first gradient that is left at its last step."""


def play(plays: Sequence[dict[str, object]], folder: Path) -> list[Played]:
    """Play games with the real trainer, one after another; plays: fields of `tests.game.play.Play`."""
    asked, told = folder / "plays.json", folder / "policies.json"
    asked.write_text(json.dumps(list(plays)))
    command = [sys.executable, "-W", "ignore", "-m", "tests.game.play", str(asked), str(told)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found = json.loads(told.read_text())
    return [Played(**{**one, "policies": [np.array(policy) for policy in one["policies"]]}) for one in found]
