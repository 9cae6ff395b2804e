"""What a rank posts for the driver when its group ends: an error, too little memory and what to try next, a result."""

from __future__ import annotations

from typing import Any

from sparring.stages.errors import SparringError, TrainingFault, disk_is_full
from sparring.stages.step import Job
from sparring.stages.train.config import TrainSettings
from sparring.stages.train.launch.mailbox import DISK_FULL, ENDING, MICRO_BATCH, mailbox, post, read
from sparring.stages.train.memory import out_of_memory


def post_failure(job: Job[TrainSettings], rank: int, error: Exception) -> bool:
    """Post an error that the driver handles; return whether it is one."""
    if out_of_memory(error):
        retry_with_less(job, rank)
    elif isinstance(error, SparringError):
        post_ending(job, {"type": type(error).__name__, "message": str(error)})
    elif disk_is_full(error, job.out):
        (mailbox(job) / DISK_FULL).touch()
    else:
        return False
    return True


def retry_with_less(job: Job[TrainSettings], rank: int) -> None:
    """Have the driver start the workers anew with half the pairs in a forward pass; an error where there is only one.

    After a probe that ran out of memory itself: with the most that fitted.
    """
    probed = read(job, MICRO_BATCH) or {}
    fits = None if "chosen" in probed else probed.get("fits")
    pairs = current_settings(job).micro_pairs(job.workers.count)
    if job.settings.hardware.micro_batch == "auto" and fits:
        text = f"rank {rank} ran out of memory trying more than {fits} pairs in a forward pass; it stays at {fits}"
        ending = {"text": text, "micro_batch": fits}
    elif pairs > 1:
        text = (
            f"rank {rank} ran out of memory with {pairs} pairs in a forward pass; training goes on from its last "
            f"checkpoint with {pairs // 2}"
        )
        ending = {"text": text, "micro_batch": pairs // 2}
    else:
        text = (
            f"rank {rank} ran out of memory with 1 pair in a forward pass; set trainer.gradient_checkpointing=true, "
            "raise hardware.workers (ZeRO-3 shares the policy among them), free memory on the machine, or lower "
            "sampler.max_tokens and prompts.max_tokens; then run again to resume."
        )
        ending = {"type": TrainingFault.__name__, "message": text}
    post_ending(job, ending)


def post_ending(job: Job, ending: dict[str, Any]) -> None:
    """Post how this group of workers ends.

    An error (`type`) or a published policy (`files`) ends the training, and is never replaced. Fewer pairs in a forward
    pass (`micro_batch`) replace a saved state (`saved`), not the other way round.
    """
    posted = read(job, ENDING) or {}
    if not posted or ("saved" not in ending and not posted.keys() & {"type", "files"}):
        post(job, ENDING, ending)


def current_settings(job: Job[TrainSettings]) -> TrainSettings:
    """Return the settings with a number of pairs in a forward pass: what the probe chose, 1 while it has not."""
    if job.settings.hardware.micro_batch != "auto":
        return job.settings
    return job.settings.with_micro_batch((read(job, MICRO_BATCH) or {}).get("chosen", 1))
