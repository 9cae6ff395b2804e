"""Trackers that get the record of every optimizer step, through what transformers offers: its reporting callbacks.

They read their own environment (WANDB_MODE, MLFLOW_TRACKING_URI ...); where it is silent, this names the project and
the run. A resumed training goes on in the same folder of TensorBoard and the same run of W&B; others begin a new run.
"""

from __future__ import annotations

import os

from pipeline.job import Job


def settle(job: Job) -> None:
    """Set what the sinks read of the environment, in the process of rank 0."""
    name = str(job.runtime["tracked_as"])
    inside = name.partition("/")[2] or name
    chosen = {
        "TENSORBOARD_LOGGING_DIR": str(job.scratch.parent / "tensorboard" / inside),
        "WANDB_PROJECT": "sparring",
        "WANDB_RUN_ID": f"{job.spec.kind}-{job.fingerprint[:8]}",
        "WANDB_RESUME": "allow",
        "MLFLOW_EXPERIMENT_NAME": "sparring",
    }
    for key, value in chosen.items():
        os.environ.setdefault(key, value)
