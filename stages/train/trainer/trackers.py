"""Trackers that get the record of every optimizer step, through what transformers offers: its reporting callbacks.

They read their own environment (WANDB_MODE, MLFLOW_TRACKING_URI ...); where it is silent, this names the project and
the run. A resumed training goes on in the same folder of TensorBoard and the same run of W&B; others begin a new run.
The callbacks give W&B and MLflow transformers' arguments and the model's config; `Parameters` adds what defines the
training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import islice
from typing import Any

from transformers import TrainerCallback

from sparring.stages.fields import identity
from sparring.stages.fingerprint import artifact_name
from sparring.stages.step import Job

BATCH = 100
"""Parameters that MLflow takes at once."""
LONGEST = 500
"""Characters of a value that every version of MLflow takes; a longer one is cut."""


def set_environment(job: Job) -> None:
    """Set what the trackers read of the environment, in the process of rank 0."""
    name = job.settings.tracked_as
    inside = name.partition("/")[2] or name
    chosen = {
        "TENSORBOARD_LOGGING_DIR": str(job.scratch.parent / "tensorboard" / inside),
        "WANDB_PROJECT": "sparring",
        "WANDB_RUN_ID": artifact_name(job.spec.kind, job.fingerprint),
        "WANDB_RESUME": "allow",
        "MLFLOW_EXPERIMENT_NAME": "sparring",
    }
    for key, value in chosen.items():
        os.environ.setdefault(key, value)


class Parameters(TrainerCallback):
    """Gives the settings of a training to W&B and MLflow, under `sparring.…`: when their callbacks have begun a run."""

    def __init__(self, job: Job) -> None:
        self.sinks = job.settings.tracking.sinks
        self.values = {"sparring": {"fingerprint": job.fingerprint, **identity(job.settings)}}

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Log them from the process that the trackers run in."""
        if not state.is_world_process_zero:
            return
        if "mlflow" in self.sinks:
            import mlflow

            to_mlflow(mlflow, self.values)
        if "wandb" in self.sinks:
            import wandb

            wandb.config.update(self.values, allow_val_change=True)


def to_mlflow(mlflow: Any, values: Mapping[str, Any]) -> None:
    """Log a configuration as parameters of MLflow's active run."""
    flat = iter(parameters(values).items())
    while batch := dict(islice(flat, BATCH)):
        mlflow.log_params(batch)


def parameters(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Return dotted key -> value as text: text as it is, the rest as JSON; values that MLflow would refuse are cut."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= parameters(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = (value if isinstance(value, str) else json.dumps(value))[:LONGEST]
    return flat
