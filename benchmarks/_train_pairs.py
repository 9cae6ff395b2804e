"""The pairs that all contenders of training learn from: real ones, of the first iteration of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.pipeline.runs import run_record
from sparring.pipeline.store.files import external
from sparring.pipeline.store.manifest import Artifact
from sparring.stages.errors import DataError
from sparring.stages.step import Input
from sparring.stages.train.batch.rows import ResponsePair, join_pairs

REMEDY = "run `make iter N=1` first"
MAX_LENGTH = 1024
"""Tokens of prompt and response: TRL's default."""
GLOBAL_BATCH = 8
"""Pairs of an optimizer step: TRL's default, and the CPU profile's."""
RANK, ALPHA = 16, 32
BETA, LR = 0.1, 1e-5
"""The same for all. beta is TRL's default: a change of the log-probs shows in the loss, as it does not at 0.001."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs with hard targets, 1 and 0, and the reference's log-probs once they are known."""

    policy: Path
    """The folder of the policy that sampled them."""
    rows: Sequence[ResponsePair]
    samples: Input
    """The samples they are of: which tokens end a turn is read there."""

    @property
    def tokens(self) -> int:
        """Tokens of both sequences of all pairs, each with its prompt, none padding."""
        return sum(row.tokens for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one contender is told: a round is an epoch over the pairs."""

    kind: str
    """trl, ours or reference."""
    pairs: Pairs
    micro_batch: int
    rounds: int
    adapter: str = "off"
    """What is trained: all weights, or `lora` of RANK and ALPHA on all linear layers."""
    gpu: bool = False
    """In bf16 on one GPU, instead of fp32 on the CPU."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of trl: arguments of DPOConfig. Of ours: overrides, and whether both responses share their prompt."""


def pairs_of(run: Path, store: Path, policy: Path, count: int) -> Pairs:
    """Return `count` pairs of iteration 1 of the run in a folder, evenly spread; DataError when there are fewer."""
    steps = run_record.read(run).steps.get(1, {})
    if not {"sample", "pairs"} <= steps.keys():
        raise DataError(f"{run}: has no first iteration to take pairs from; {REMEDY}.")
    samples, pairs = (_opened(store, label, steps[label].fingerprint) for label in ("sample", "pairs"))
    sampled_by = samples[1].inputs["policy"]["digest"]
    if sampled_by != external("policy", policy).digest:
        raise DataError(f"{policy}: did not sample the responses of {run}; name the policy that did with --policy.")
    rows: list[ResponsePair] = []
    for index in range(pairs[0].n_parts):
        table = samples[0].table(index, ["id", "prompt_ids", "responses"])
        rows += join_pairs(table, pairs[0].table(index, ["id", "chosen", "rejected"]), MAX_LENGTH, "drop")[0]
    if len(rows) < count:
        raise DataError(f"{run}: has {len(rows)} pairs, fewer than the {count} asked for; lower --pairs.")
    spread = rows[:: len(rows) // count][:count]
    return Pairs(policy=policy, rows=spread, samples=samples[0])


def _opened(store: Path, kind: str, name: str) -> tuple[Any, Any]:
    artifact = Artifact(store, kind, name)
    manifest = artifact.manifest()
    if manifest is None:
        raise DataError(f"{artifact.path}: is not there; name the run's store with --store, or {REMEDY}.")
    return artifact.as_input("samples" if kind == "sample" else kind, manifest), manifest
