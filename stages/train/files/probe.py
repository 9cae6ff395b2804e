"""How far training moved the log-probs of training pairs, under the model in memory.

The pairs are a draw by seed, all where there are no more: those of the first batches would be the shortest ones. The
published folder must give the same numbers: tests load it anew and compare.

h is the change since the policy that sampled. Where no step `reference` has scored that (simpo), `from_start` does, for
the rows of the probe alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.model.forward import Bound
from sparring.stages.train.model.scorer import score

ROWS = 64
"""Most training pairs of the probe."""
ALONE = 8
"""Most of them that are scored one at a time as well: enough to see the size of rounding; each costs a pass."""


def drawn(pairs: int, seed: int) -> list[int]:
    """Return the indices, in order, of ROWS of the pairs, or of all: the same for the same seed."""
    return sorted(random.Random(f"probe {seed}").sample(range(pairs), min(pairs, ROWS)))


def changes_of_log_prob(model: Bound, rows: Sequence[ResponsePair]) -> list[dict[str, Any]]:
    """h_w and h_l in nats of each row under a bound model (or an engine around one)."""
    scores = zip(rows, score(model, rows), strict=True)
    return [{"id": row.id, "h_w": z_w - row.ref_w, "h_l": z_l - row.ref_l} for row, (z_w, z_l) in scores]


def from_start(model: Bound, rows: Sequence[ResponsePair]) -> tuple[list[ResponsePair], float]:
    """The rows with the policy that training starts from as reference, and the noise: mean |z in one pass - z alone|
    in nats, of ALONE rows.
    """
    together = score(model, rows)
    alone = [score(model, [row])[0] for row in rows[:ALONE]]
    started = [replace(row, ref_w=z_w, ref_l=z_l) for row, (z_w, z_l) in zip(rows, together, strict=True)]
    differences = [
        abs(a - b) for one, two in zip(together[:ALONE], alone, strict=True) for a, b in zip(one, two, strict=True)
    ]
    return started, sum(differences) / len(differences)
