"""How many pairs a forward pass takes where hardware.micro_batch is `auto`: measured before the training begins.

The longest rows go forward and backward through an engine like the training's, 1 pair, then 2, 4 ..., as long as the
memory that the next size needs, by the last ones, is free. That engine is then thrown away: nothing of it, no random
number, gradient or step, gets into the training. It takes a minute at most, beside loading the policy once more.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from sparring.stages.train import memory
from sparring.stages.train.config import TrackingConfig, TrainSettings
from sparring.stages.train.trainer.trainer import BeforeTraining, PairTrainer

MARGIN = 0.8
"""Share of the available memory that a pass may take."""
AS_FAST = 1.05
"""A larger pass has to save more time a pair than this to be worth its memory."""
BUDGET_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward and backward pass, the worst of all workers."""

    pairs: int
    seconds: float
    grown: float
    """Bytes at its peak."""

    @property
    def pace(self) -> float:
        """Seconds a pair."""
        return self.seconds / self.pairs


def next_size(share: int, passes: Sequence[Pass], available: float, left_s: float) -> int | None:
    """Return the next size to measure, None when it would not fit, would take too long or the last one was slower.

    Sizes: divisors of a worker's `share` of the global batch, each at least twice the last. Its bytes and seconds are
    extrapolated on a line through the last two passes; while there is one pass, through it and 0.
    """
    if not passes:
        return 1
    last, before = passes[-1], passes[-2] if len(passes) > 1 else Pass(pairs=0, seconds=0.0, grown=0.0)
    size = next((n for n in range(2 * last.pairs, share + 1) if share % n == 0), None)
    if size is None or (before.pairs and last.pace > AS_FAST * before.pace):
        return None
    slope = max(0.0, last.grown - before.grown) / (last.pairs - before.pairs)
    grown = last.grown + slope * (size - last.pairs)
    return size if grown <= MARGIN * available and last.pace * size <= left_s else None


def fastest(passes: Sequence[Pass]) -> Pass:
    """Return the smallest of those that are about as fast a pair as the fastest."""
    best = min(one.pace for one in passes)
    return next(one for one in passes if one.pace <= AS_FAST * best)


def probe(
    build: Callable[[TrainSettings], PairTrainer],
    settings: TrainSettings,
    share: int,
    local_workers: int,
    on_fit: Callable[[int], None],
) -> tuple[int, str]:
    """Return the pairs of a forward pass, agreed by all workers, and a line for people.

    local_workers: workers of this host; on_fit: called with each size that fitted on all workers.
    """
    begun = time.monotonic()
    trainer = build(replace(settings.with_micro_batch(1), tracking=TrackingConfig(sinks=())))

    def stop() -> None:
        raise _EngineIsMade

    trainer.add_callback(BeforeTraining(stop))
    with contextlib.suppress(_EngineIsMade):
        trainer.train()
    trainer.model_wrapped.train()
    longest = sorted(range(len(trainer.rows)), key=lambda i: -trainer.rows[i].shared_length)
    device = trainer.args.device
    flats = trainer.model_wrapped.optimizer.fp32_partitioned_groups_flat
    # what the optimizer takes at its first step: two states a weight at most; under offload they lie elsewhere
    states = sum(2 * flat.nbytes for flat in flats if flat.device.type == device.type)
    del flats
    free = memory.available(device) / (1 if device.type == "cuda" else local_workers) - states
    available = -_worst(device, -free)[0]
    passes: list[Pass] = []
    while True:
        left = BUDGET_S - _worst(device, time.monotonic() - begun)[0]
        size = next_size(share, passes, available, left)
        if size is None:
            break
        rows = [longest[i % len(longest)] for i in range(size)]
        if not passes:
            _pass(trainer, rows)  # the first one pays for what later ones find ready
        passes.append(_pass(trainer, rows))
        on_fit(size)
    trainer.model_wrapped.destroy()
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    chosen = fastest(passes)
    return chosen.pairs, (
        f"{chosen.pairs} of {share} pairs in a forward pass: {chosen.pace:.2g} s a pair, {chosen.grown / 2**30:.2g} of "
        f"{available / 2**30:.2g} GiB that were free; tried {', '.join(str(one.pairs) for one in passes)} "
        f"in {time.monotonic() - begun:.0f} s"
    )


class _EngineIsMade(Exception):
    """Ends `train` before its first step."""


def _pass(trainer: PairTrainer, rows: Sequence[int]) -> Pass:
    engine = trainer.model_wrapped
    collate: Any = trainer.data_collator
    batch = trainer._prepare_inputs(collate(rows))
    engine.set_gradient_accumulation_boundary(False)  # gradients are summed up, no step is made of them
    dist.barrier()
    with memory.peak(trainer.args.device) as grown:
        begun = time.monotonic()
        engine.backward(trainer.compute_loss(engine, batch))
        if trainer.args.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - begun
    trainer.sums.clear()
    seconds, most = _worst(trainer.args.device, seconds, grown[0])
    return Pass(pairs=len(rows), seconds=seconds, grown=most)


def _worst(device: torch.device, *values: float) -> list[float]:
    """Return the largest of each value over all workers."""
    packed = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(packed, dist.ReduceOp.MAX)
    return [float(value) for value in packed.tolist()]
