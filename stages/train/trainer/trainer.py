"""The transformers Trainer with a pair loss on token ids.

Not TRL's DPOTrainer: its seams are private, start from text that it renders and tokenizes again, and return no hidden
states, while the sampled token ids and the reference's log-probs are known already. Its losses serve as parity
tests. The Trainer brings the loop, gradient accumulation, DeepSpeed and resuming.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments

from sparring.stages.train.batch.collate import collate
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.config import TrainSettings, tracked_name
from sparring.stages.train.files import reshard
from sparring.stages.train.loss.loss import pair_losses, recorded
from sparring.stages.train.memory import drop, one_copy, trim
from sparring.stages.train.model.forward import Bound
from sparring.stages.train.trainer import gathers
from sparring.stages.train.trainer.arguments import schedule
from sparring.stages.train.trainer.instruments import Instruments

CALIBRATION = "calibration.json"
"""Of a checkpoint: the running means of the reward calibration."""
NAMED = 64
"""Rows that a message names: a global batch of the published recipe."""


class NotFinite(Exception):
    """A loss or gradient is not finite; raised on every rank at the same step."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the trainer calls of its surroundings."""

    on_step: Callable[[dict[str, Any]], None]
    """Called on every rank with the record of each optimizer step."""
    stage_checkpoint: Callable[[int], Path]
    """The folder for a checkpoint of a step."""
    seal_checkpoint: Callable[[Path, int], None]
    """Called by every rank when all files of the checkpoint are written."""
    must_end: Callable[[], bool]
    """Called on every rank after each optimizer step; where one returns True, all save a checkpoint and end."""


class BeforeTraining(TrainerCallback):
    """Calls `act` on every rank once the engine is made, before the first optimizer step."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Called by the trainer."""
        self.act()


class PairTrainer(Trainer):
    """Trains on rows dealt in a fixed order; each optimizer step sees exactly one global batch of them."""

    def __init__(
        self,
        *,
        model: Bound,
        args: TrainingArguments,
        settings: TrainSettings,
        rows: Sequence[ResponsePair],
        order: Sequence[int],
        end_of_turn: frozenset[int],
        hooks: Hooks,
        resumed_from: int,
    ) -> None:
        self.settings, self.rows, self.end_of_turn, self.hooks = settings, rows, end_of_turn, hooks
        self.last_checkpoint, self.shared_up_to, self.flat = resumed_from, model.shared_up_to, model.flat
        self.sums: list[tuple[int, Tensor]] = []
        self.instruments = Instruments(model, settings)
        self.order = list(order)
        dealt: Any = self.order
        super().__init__(model=model, args=args, train_dataset=dealt, data_collator=self._collate)
        self.model_wrapped: Any
        self.model_accepts_loss_kwargs = False

    def _collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = [self.rows[i] for i in indices]
        batch = collate(rows, self.end_of_turn, self.settings.repulsion.pooling, self.shared_up_to, self.flat)
        return {**batch, "rows": torch.tensor(indices)}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Loss of one micro-batch; raises NotFinite on all ranks when it is not finite on one."""
        z, states = self.instruments.forward(model, inputs, self.state.global_step)
        losses, sums = pair_losses(z, states, inputs, self.settings.objective, self.settings.repulsion)
        wrong = ~torch.isfinite(losses.detach())
        count = wrong.sum().float()
        dist.all_reduce(count)
        if count.item():
            self._stop("loss", inputs["rows"][wrong].tolist())
        self.sums.append((len(inputs["rows"]), sums))
        return losses.mean().float()

    def _stop(self, what: str, indices: Sequence[int]) -> None:
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, [self.rows[i].id for i in indices])
        ids = sorted({row_id for part in gathered for row_id in part})
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        shown = ", ".join(ids[:NAMED]) + more
        step = self.state.global_step + (what == "loss")
        last = f"step {self.last_checkpoint}" if self.last_checkpoint else "none"
        raise NotFinite(
            f"{what} is not finite at optimizer step {step}; rows {shown}; last checkpoint: {last}; "
            "lower trainer.lr or trainer.max_grad_norm, or look at these rows, then run again."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Record an optimizer step over the global batch; the Trainer calls this before it saves a checkpoint."""
        if "grad_norm" not in logs:
            return
        step, norm = self.state.global_step, logs["grad_norm"]
        size = self.settings.trainer.global_batch
        if not math.isfinite(norm) or norm < 0:  # DeepSpeed masks a norm that is not finite as -1
            self._stop("gradient", self.order[(step - 1) * size : step * size])
        count, means, end = self._reduced()
        record = {"step": step, "of": self.state.max_steps, "pairs": count, **means}
        limit = self.settings.trainer.max_grad_norm
        record |= {
            "grad_norm": norm,
            "clipped": bool(0 < limit < norm),
            "lr": logs["learning_rate"],
        }
        record |= self.instruments.record(count, means["d_w"], means["d_l"])
        drop(self.model_wrapped.optimizer.grad_partitions_flat_buffer)  # the next step writes it anew
        self.hooks.on_step(record)
        shown = {tracked_name(name): value for name, value in record.items()}
        self.control: Any = self.callback_handler.on_log(self.args, self.state, self.control, shown)
        if end:
            self.control.should_save = self.control.should_training_stop = True

    def _reduced(self) -> tuple[int, dict[str, float], bool]:
        """Pairs, and over all micro-batches and ranks since the last call means of sums, what follows, and whether
        a rank is to end. kl_of_pairs = -mean of h estimates KL(reference || policy) in nats a response from chosen and
        rejected ones alone: without bias where K is 2 and no pair was dropped.
        """
        end, pairs = float(self.hooks.must_end()), float(sum(n for n, _ in self.sums))
        total = torch.stack([s for _, s in self.sums]).sum(0)
        packed = torch.cat([torch.tensor([end, pairs], dtype=torch.float64, device=total.device), total])
        dist.all_reduce(packed)
        self.sums.clear()
        end, pairs, *values = packed.tolist()
        sums = dict(zip(recorded(self.settings.objective), values, strict=True))
        moved, norm = sums.pop("moved", None), sums.pop("norm", None)
        means = {name: value / pairs for name, value in sums.items()}
        if moved is not None:
            means["saturation"] = moved / norm if norm else 0.0
        if "h_w" in means:
            means["kl_of_pairs"] = -(means["h_w"] + means["h_l"]) / 2
        return int(pairs), means, end > 0

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Make the engine and load the checkpoint, one of another number of workers in a way of our own."""
        folder = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        same_workers = folder is None or reshard.workers_of(folder) == dist.get_world_size()
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, resume_from_checkpoint if same_workers else None
        )
        if folder and not same_workers:
            reshard.load(self.model_wrapped, folder)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)  # the schedule alone, under DeepSpeed
        one_copy(self.model_wrapped)
        if self.args.device.type == "cuda" and self.settings.trainer.dtype == "bfloat16":
            gathers.in_bfloat16(self.model_wrapped.module)
        trim()
        return prepared

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """That of `schedule`, lr > 0 at every step; transformers' own start at 0."""
        ratio, shape = self.settings.trainer.warmup_ratio, self.settings.trainer.schedule
        chosen: Any = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = LambdaLR(chosen, lambda step: schedule(step, num_training_steps, ratio, shape))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def train(self, resume_from_checkpoint: Any = None, *options: Any, **named: Any) -> Any:
        """Train, from the folder of a checkpoint if one is given."""
        if resume_from_checkpoint and self.instruments.calibration:
            state = json.loads((Path(resume_from_checkpoint) / CALIBRATION).read_text(encoding="utf-8"))
            self.instruments.calibration.restore(state)
        return super().train(resume_from_checkpoint, *options, **named)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write what resuming needs, and nothing at the last step, which is published instead."""
        step = self.state.global_step
        if step == self.state.max_steps:
            return
        folder = self.hooks.stage_checkpoint(step)
        if self.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        dist.barrier()
        self.model_wrapped.save_checkpoint(str(folder), exclude_frozen_parameters=True)
        if self.is_world_process_zero():
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
            self.state.save_to_json(str(folder / "trainer_state.json"))
            if self.instruments.calibration:
                (folder / CALIBRATION).write_text(json.dumps(self.instruments.calibration.state()), encoding="utf-8")
        dist.barrier()
        self.hooks.seal_checkpoint(folder, step)
        self.last_checkpoint = step
