"""What a rank leaves for the driver when it cannot go on: a fault, or word that memory ran out and what to try next."""

from __future__ import annotations

from sparring.stages.errors import SparringError, TrainingFault, disk_is_full
from sparring.stages.step import Job
from sparring.stages.train.config import TrainSettings
from sparring.stages.train.room import AGAIN, FAULT, FULL, MICRO_BATCH, PROBED, room, tell, told


def noted(job: Job, rank: int, error: Exception) -> bool:
    """Write down an error that the driver knows what to do about; say whether it is one."""
    from sparring.stages.train.memory import out_of_memory

    if out_of_memory(error):
        go_on_with_less(job, rank)
    elif isinstance(error, SparringError):
        _fault(job, error)
    elif disk_is_full(error, job.out):
        (room(job) / FULL).touch()  # a file without content still finds space
    else:
        return False
    return True


def _fault(job: Job, error: SparringError) -> None:
    tell(job, FAULT, {"type": type(error).__name__, "message": str(error)})


def go_on_with_less(job: Job, rank: int) -> None:
    """Have the driver start the workers anew with half the pairs in a forward pass; a fault where there is but one.

    After a probe that ran out of memory itself: with as many as it has seen fit.
    """
    fitted = None if told(job, MICRO_BATCH) else told(job, PROBED)
    if job.settings.hardware.micro_batch == "auto" and fitted:
        text = f"rank {rank} ran out of memory trying more than {fitted} pairs in a forward pass; it stays at {fitted}"
        tell(job, AGAIN, {"text": text, "micro_batch": fitted})
        return
    pairs = settled(job).micro_pairs()
    if pairs > 1:
        text = (
            f"rank {rank} ran out of memory with {pairs} pairs in a forward pass; training goes on from its last "
            f"checkpoint with {pairs // 2}"
        )
        tell(job, AGAIN, {"text": text, "micro_batch": pairs // 2})
        return
    _fault(
        job,
        TrainingFault(
            f"rank {rank} ran out of memory with 1 pair in a forward pass; set trainer.gradient_checkpointing=true, "
            "raise hardware.workers (ZeRO-3 shares the policy among them), free memory on the machine, or lower "
            "sampler.max_tokens and prompts.max_tokens; then run again to resume."
        ),
    )


def settled(job: Job[TrainSettings]) -> TrainSettings:
    """Return the settings with a number of pairs in a forward pass: what the probe chose, 1 while it has not."""
    if job.settings.hardware.micro_batch != "auto":
        return job.settings
    return job.settings.with_micro_batch(told(job, MICRO_BATCH) or 1)
