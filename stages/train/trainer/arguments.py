"""Arguments of the transformers Trainer: learning rate by step, batch, optimizer, ZeRO-3."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from sparring.stages.step import Workers
from sparring.stages.train.config import Schedule, TrainSettings
from sparring.stages.train.deepspeed_keys import merged

OPTIMIZERS = {"rmsprop": "rmsprop", "adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}
"""transformers' names. RMSProp: alpha 0.99, eps 1e-8, no momentum, torch's defaults, as in the official runs. Adam:
betas 0.9 and 0.999, eps 1e-8. 8-bit Adam: its states in blocks of 256 of a rank's share of the
weights, so workers change its rounding."""


def schedule(step: int, steps: int, warmup_ratio: float, shape: Schedule = "linear") -> float:
    """Factor on lr at 0-based optimizer step s: (s+1)/warm up to 1, then linear, cosine or constant; never 0.

    With x = (s-warm) / (steps-warm): 1-x, (1 + cos(pi x)) / 2, or 1.
    """
    warm = math.ceil(warmup_ratio * steps)
    if step < warm:
        return (step + 1) / warm
    if shape == "constant" or steps <= warm:
        return 1.0
    left = max(steps - step, 1) / (steps - warm)
    return left if shape == "linear" else (1 - math.cos(math.pi * left)) / 2


def arguments(settings: TrainSettings, workers: Workers, steps: int, folder: Path) -> TrainingArguments:
    """Arguments of the Trainer for `steps` optimizer steps under DeepSpeed ZeRO-3; fp32 master weights."""
    trainer, micro = settings.trainer, settings.micro_pairs(workers.count)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=trainer.global_batch // (workers.count * micro),
        gradient_checkpointing=trainer.gradient_checkpointing,
        learning_rate=trainer.lr,
        optim=OPTIMIZERS[trainer.optimizer],
        weight_decay=trainer.weight_decay,
        max_grad_norm=trainer.max_grad_norm,
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=trainer.checkpoint_steps,
        seed=settings.seed,
        bf16=False,
        use_cpu=workers.gpus == 0,
        deepspeed=merged(deepspeed_config(settings.hardware.offload, on_gpus=workers.gpus > 0), trainer.deepspeed),
        remove_unused_columns=False,
        dataloader_pin_memory=workers.gpus > 0,
        disable_tqdm=True,
        report_to=list(settings.tracking.sinks),
        run_name=settings.tracked_as,
        project="sparring",
    )


def deepspeed_config(offload: str, on_gpus: bool) -> dict[str, Any]:
    """ZeRO-3 with the optimizer as it is, also on the CPU: DeepSpeed's own would be compiled with gcc at first use."""
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": False,
        "reduce_bucket_size": 20_000_000,
        "sub_group_size": 20_000_000,  # weights of an optimizer's step: its temporaries are no larger
        "stage3_prefetch_bucket_size": 20_000_000,
        "stage3_max_live_parameters": 500_000_000,
    }
    to_host = {"device": "cpu", "pin_memory": on_gpus}
    if offload != "none":
        zero["offload_optimizer"] = to_host
    if offload == "all":
        zero["offload_param"] = to_host
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
    }
