"""When a shard counts as hung, which of its prompts make its worker fail, and how an error is reported. No Ray here."""

from __future__ import annotations

import contextlib
import math
import re
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from sparring.stages.errors import DataError, EngineFault, SparringError, disk_is_full, full_disk
from sparring.stages.step import Job, Shard, resolve

TRIES_BEFORE_BISECTION = 2
"""A worker that fails once on a shard may have been killed from outside; after two failures the prompts are tested."""
MOST_POISON = 4
"""If more prompts of one shard than this fail, none is dropped: then the cause is not the prompts."""
HANGS_AFTER, FLOOR_S = 10.0, 600.0


def alike(one: str, other: str) -> bool:
    """Return whether two messages of an engine are the same but for addresses and numbers in them."""
    plain = [re.sub(r"0x[0-9a-fA-F]+|\d+", "#", text) for text in (one, other)]
    return plain[0] == plain[1]


@dataclass
class ShardDeadline:
    """How long a shard may take: `limit_s`, or 10 times the slowest shard so far and FLOOR_S where that is less.

    FLOOR_S is what an engine may need to load again: where it was loaded before, no shard of the step has shown it.
    """

    limit_s: float
    slowest_s: float = 0.0

    def record(self, seconds: float) -> None:
        """Take a finished shard into account."""
        self.slowest_s = max(self.slowest_s, seconds)

    def allowed_s(self) -> float:
        """Return the seconds that a shard may take."""
        usual = HANGS_AFTER * self.slowest_s + FLOOR_S if self.slowest_s else math.inf
        return min(self.limit_s, usual)


def bisect(rows: Sequence[int]) -> Generator[Sequence[int], object, list[int]]:
    """Yield rows to try together, get whether they fail; return those that fail alone, twice, [] when none does.

    rows: they fail together. Halves of what fails are tried until single rows are left: about 2 log2(n) tries for one
    such row. The search stops after more than MOST_POISON rows.
    """
    if len(rows) == 1:
        return list(rows) if (yield rows) else []
    poison: list[int] = []
    for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        if len(poison) <= MOST_POISON and (yield half):
            poison += yield from bisect(half)
    return poison


def poison_search(
    job: Job, shard: Shard, fault: EngineFault, others: Sequence[Shard], message: Callable[[str], None]
) -> Generator[Shard, EngineFault | None, Shard]:
    """Yield parts of shards to try alone, get why each failed or None; return the shard without its poison.

    fault: why the shard fails. others: shards that are not done yet, the least suspect first. `message` gets a line
    about what is dropped. EngineFault where it is not the prompts: others fail in the same way, or too many do.
    """
    part: Callable[[Shard, Sequence[int]], Shard] = resolve(job.spec.narrow)
    name, count, details = job.out.name, len(shard.payload["rows"]), f"details: {log_files(job)}"
    for probe in [*(part(one, [0]) for one in others), part(shard, [0]), part(shard, [count - 1])][:2]:
        other = yield probe
        if other is None or not alike(str(other), str(fault)):
            break
    else:
        raise EngineFault(f"{name}: every prompt fails in the same way, so it is not the prompts: {fault}; {details}.")
    halves, tried = bisect(range(count)), None
    while True:
        try:
            keep = halves.send(tried)
        except StopIteration as end:
            poison: list[int] = end.value
            break
        tried = yield part(shard, keep)
    if len(poison) > MOST_POISON or len(poison) == count > 1:
        many = "all" if len(poison) == count else f"more than {MOST_POISON}"
        raise EngineFault(
            f"{name}: {many} prompts of shard {shard.index} fail, so it is not the prompts; the last time because "
            f"{fault}; {details}."
        )
    if not poison:
        return shard
    places = ", ".join(str(shard.payload["rows"][i]) for i in poison)
    message(f"{name}: its worker fails on the prompts of rows {places}; they are dropped and counted as poison")
    return part(shard, [i for i in range(count) if i not in poison])


@contextlib.contextmanager
def step_errors(job: Job, shard: Shard | None = None) -> Iterator[None]:
    """Replace an exception by a SparringError that names the step and the shard; its stack trace goes into the logs.

    An error of ours says these already. An ImportError is left to the command line, which names the missing package.
    """
    try:
        yield
    except (SparringError, ImportError):
        raise
    except Exception as error:
        if disk_is_full(error, job.out):
            raise DataError(full_disk(job.out)) from None
        path = job.scratch / f"{job.out.name}-errors.log"
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8", errors="replace") as log:
            log.write(traceback.format_exc())
        place = f"{job.out.name}: shard {shard.index}" if shard else job.out.name
        message = str(error).strip().partition("\n")[0]
        what = f"{type(error).__name__}: {message}" if message else type(error).__name__
        raise SparringError(f"{place} failed: {what}; details: {log_files(job)}.") from error


def log_files(job: Job) -> str:
    """Return the pattern of the log files of a step's workers."""
    return f"{job.scratch}/{job.out.name}-*.log"
