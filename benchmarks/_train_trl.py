"""TRL's DPOTrainer as the benchmark runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from benchmarks._process import timed
from benchmarks._train_pairs import ALPHA, BETA, GLOBAL_BATCH, LR, RANK, Setting

LORA = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear")


class Tokenized(DPOTrainer):
    """Takes token ids: to tokenize the texts again might give others than were sampled."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def trainer(setting: Setting, steps: int, folder: Path) -> tuple[DPOTrainer, dict[str, Any]]:
    """Return the trainer, the policy's parameters, and what it precomputed: seconds and the reference's log-probs."""
    seconds: dict[str, float] = {}
    timed(DPOTrainer, "_precompute_ref_logps", seconds)
    examples = [
        {"prompt_ids": row.prompt, "chosen_ids": row.chosen, "rejected_ids": row.rejected, "length": row.length}
        for row in setting.pairs.rows
    ]
    built = Tokenized(
        model=str(setting.pairs.policy),
        args=_arguments(setting, steps, folder),
        train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(setting.pairs.policy),
        peft_config=None if setting.adapter == "off" else LORA,
    )
    told = _sizes(built.model)
    if not seconds:
        return built, told
    dataset: Any = built.train_dataset
    columns = (dataset[name] for name in ("ref_chosen_logps", "ref_rejected_logps"))
    scores = list(zip(*(map(float, column) for column in columns), strict=True))
    return built, {**told, "precompute": seconds["_precompute_ref_logps"], "scores": scores}


def _sizes(model: Any) -> dict[str, Any]:
    """Return the weights that every token goes through, and those of the head, which responses alone need."""
    inputs, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    looked_up = 0 if inputs is head else inputs.numel()
    return {"trunk": sum(p.numel() for p in model.parameters()) - head.numel() - looked_up, "head": head.numel()}


def _arguments(setting: Setting, steps: int, folder: Path) -> DPOConfig:
    """Its defaults, in fp32, but for what the setting says; at 8 pairs a forward pass the batch is its default too."""
    return DPOConfig(
        output_dir=str(folder),
        loss_type=["sppo_hard"],
        beta=BETA,
        learning_rate=LR,
        per_device_train_batch_size=setting.micro_batch,
        gradient_accumulation_steps=GLOBAL_BATCH // setting.micro_batch,
        max_steps=steps,
        use_cpu=not setting.gpu,
        bf16=setting.gpu,
        save_strategy="no",
        disable_tqdm=True,
        report_to=[],
        **setting.options,
    )
