"""What the Trainer is told: learning rate by step, batch, optimizer, ZeRO-3."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from stages.train.config import TrainIdentity, TrainRuntime


def schedule(step: int, steps: int, warmup_ratio: float) -> float:
    """Factor on lr at 0-based optimizer step `step`: (s+1)/warm up to 1, then linear down; never 0."""
    warm = math.ceil(warmup_ratio * steps)
    if step < warm:
        return (step + 1) / warm
    return max(steps - step, 1) / (steps - warm) if steps > warm else 1.0


def arguments(identity: TrainIdentity, runtime: TrainRuntime, steps: int, folder: Path) -> TrainingArguments:
    """Arguments of the Trainer for `steps` optimizer steps under DeepSpeed ZeRO-3; fp32 master weights."""
    micro = runtime.micro_pairs(identity.global_batch)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=identity.global_batch // (runtime.workers * micro),
        gradient_checkpointing=runtime.gradient_checkpointing,
        learning_rate=identity.lr,
        optim={"rmsprop": "rmsprop", "adamw": "adamw_torch"}[identity.optimizer],
        weight_decay=0.0,
        max_grad_norm=identity.max_grad_norm,
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=runtime.checkpoint_steps,
        seed=identity.seed,
        bf16=False,
        use_cpu=runtime.gpus == 0,
        deepspeed=deepspeed_config(),
        remove_unused_columns=False,
        dataloader_pin_memory=runtime.gpus > 0,
        disable_tqdm=True,
        report_to=[],
    )


def deepspeed_config() -> dict[str, Any]:
    """ZeRO-3 with torch's own optimizer: DeepSpeed's would be compiled with gcc at first use."""
    return {
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": False,
            "reduce_bucket_size": 20_000_000,
            "stage3_prefetch_bucket_size": 20_000_000,
            "stage3_max_live_parameters": 500_000_000,
        },
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
    }
