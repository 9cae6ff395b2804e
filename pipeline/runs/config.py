"""Configuration of the group keep: what of a run stays on the disk. All of it is runtime, in no fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kept = Literal["all", "last", "best"]


@dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """What stays once an iteration is evaluated and no later step of the plan reads it.

    What is dropped keeps its manifest and is a hit, until a step that is to be made reads it: then it is made again
    from its inputs. What a run beside this one refers to is never dropped. Checkpoints need no setting: while a
    training runs its newest one stays, and none stays after it.
    """

    policies: Kept
    """Trained policies: all, the last one, or the best one by the second judge against the base and the last one. The
    records of their trainings stay."""
    samples: Kept
    """Responses that an iteration trained on, and those of its best of n: likewise. Held-out responses stay, which
    cross-play reads."""
