"""Arguments of the transformers Trainer: learning rate by step, batch, optimizer, ZeRO-3."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from sparring.stages.step import Workers
from sparring.stages.train.config import Schedule, TrainSettings
from sparring.stages.train.deepspeed_keys import merged

OPTIMIZERS = {"rmsprop": "rmsprop", "adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}
"""transformers' names. RMSProp: alpha 0.99, eps 1e-8, no momentum, torch's defaults, as in the official runs. Adam:
betas 0.9 and 0.999, eps 1e-8. 8-bit Adam: its states in blocks of 256 of a rank's share of the
weights, so workers change its rounding."""


BUCKET, LIVE = 20_000_000, 500_000_000
"""Weights that a small machine moves at once, and that it holds gathered."""
LAYER = 14
"""Weights of a decoder layer over hidden^2: 13.0 of Llama-3-8B, 15.4 of Gemma-2-9B."""
SHARE = 0.02


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


def arguments(
    settings: TrainSettings,
    workers: Workers,
    steps: int,
    folder: Path,
    machine: Machine | None = None,
    hidden: int = 0,
) -> TrainingArguments:
    """Arguments of the Trainer for `steps` optimizer steps under DeepSpeed ZeRO-3; fp32 master weights.

    machine, hidden: as in `deepspeed_config`.
    """
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
        deepspeed=merged(deepspeed_config(settings.hardware.offload, machine, hidden), trainer.deepspeed),
        remove_unused_columns=False,
        dataloader_pin_memory=workers.gpus > 0,
        disable_tqdm=True,
        report_to=list(settings.tracking.sinks),
        run_name=settings.tracked_as,
        project="sparring",
    )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The GPUs that the ranks of ZeRO-3 run on."""

    gpus: int
    """One a rank."""
    gpus_per_node: int
    gpu_bytes: int
    """Memory of each."""


def machine_of(workers: Workers) -> Machine | None:
    """Return the GPUs of this process group, whose nodes are taken to be like this one; None on the CPU."""
    if not workers.gpus:
        return None
    _, memory = torch.cuda.mem_get_info()
    return Machine(gpus=workers.count, gpus_per_node=int(os.environ["LOCAL_WORLD_SIZE"]), gpu_bytes=memory)


def deepspeed_config(offload: str, machine: Machine | None = None, hidden: int = 0) -> dict[str, Any]:
    """ZeRO-3 with the optimizer as it is, also on the CPU: DeepSpeed's own would be compiled with gcc at first use.

    machine: None without GPUs; hidden: the policy's hidden size. Neither changes more than rounding.
    """
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": False,
        "reduce_bucket_size": BUCKET,
        "sub_group_size": BUCKET,  # weights of an optimizer's step, and of a tensor in checkpoints
        "stage3_prefetch_bucket_size": BUCKET,
        "stage3_max_live_parameters": LIVE,
    }
    if machine:
        zero |= communication(machine, hidden)
    to_host = {"device": "cpu", "pin_memory": machine is not None}
    if offload != "none":
        zero["offload_optimizer"] = to_host
    if offload == "all":
        zero["offload_param"] = to_host
        zero.pop("zero_hpz_partition_size", None)  # the second copy would lie in the host's memory
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
    }


def communication(machine: Machine, hidden: int) -> dict[str, Any]:
    """Keys of zero_optimization by which GPUs communicate while they compute. No GPU has run them.

    A bucket is a decoder layer, LAYER hidden^2 weights: the next one is gathered while one is computed. Gradients are
    reduced in two fp32 buffers of a bucket, which take at most SHARE of a GPU's memory. With several nodes each holds
    the weights of a step once, so that the backward pass gathers them inside of the node (ZeRO++'s hpZ).
    """
    bucket = max(BUCKET, min(LAYER * hidden**2, int(SHARE * machine.gpu_bytes / (2 * 4))))
    keys = {
        "overlap_comm": True,
        "reduce_bucket_size": bucket,
        "stage3_prefetch_bucket_size": bucket,
        "stage3_max_live_parameters": max(LIVE, 3 * bucket),
    }
    if machine.gpus > machine.gpus_per_node > 1 and machine.gpus % machine.gpus_per_node == 0:
        keys["zero_hpz_partition_size"] = machine.gpus_per_node
    return keys
