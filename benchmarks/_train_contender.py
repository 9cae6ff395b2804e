"""One contender of training in a process of its own: `_train_contender.py NAME CASES`; CASES: pickled {name: Setting}.

It loads, trains a first round that nobody counts, and says so; from then on it trains a round each time it is asked to,
within the one run of its trainer: optimizer, engine and memory are those of a training that goes on.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks._process import memory_mb, timed, trim_memory
from benchmarks._rounds import answers
from benchmarks._train_pairs import GLOBAL_BATCH, Setting


class Asked:
    """The benchmark at the other end: hears that a round is over, and asks for the next one."""

    def __init__(self) -> None:
        self.answers = answers()
        self.begun = self.cpu = 0.0

    def ready(self) -> bool:
        """Say that the set-up is done; return whether a round is asked for."""
        return self._say({"ready": True})

    def over(self, told: dict[str, Any]) -> bool:
        """Say what the round took, and `told`; return whether another one is asked for."""
        spent = {"seconds": time.perf_counter() - self.begun, "cpu_seconds": time.process_time() - self.cpu}
        return self._say({**told, **spent})

    def _say(self, line: dict[str, Any]) -> bool:
        print(json.dumps(line), file=self.answers)
        asked = bool(sys.stdin.readline())
        self.begun, self.cpu = time.perf_counter(), time.process_time()
        return asked


class Rounds(TrainerCallback):
    """Holds a Trainer at the end of each round, and sees where the round's time went."""

    def __init__(self, asked: Asked, trainer: Any, steps: int, useful: Callable[[Any], int], **told: Any) -> None:
        self.asked, self.trainer, self.steps, self.useful, self.told = asked, trainer, steps, useful, told
        self.seconds: dict[str, float] = {}
        self.losses: list[float] = []
        self.served = self.computed = 0
        self._watch_loss()
        timed(trainer, "get_batch_samples", self.seconds)
        timed(trainer, "_clip_grad_norm", self.seconds)
        timed(trainer.accelerator, "backward", self.seconds)
        trainer.add_callback(self)

    def _watch_loss(self) -> None:
        timed(self.trainer, "compute_loss", self.seconds)
        inner = self.trainer.compute_loss

        def compute_loss(model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> Any:
            loss = inner(model, inputs, *given, **named)
            self.served += self.useful(inputs)
            self.computed += inputs["input_ids"].numel()
            self.losses.append(loss.item())
            return loss

        self.trainer.compute_loss = compute_loss

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have the optimizer's steps timed: it exists by now."""
        stepping = self.trainer.model_wrapped if self.trainer.is_deepspeed_enabled else self.trainer.optimizer
        timed(stepping, "step", self.seconds)
        self.told["loaded_mb"] = memory_mb("VmRSS")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Answer at the end of a round."""
        rounds, rest = divmod(state.global_step, self.steps)
        if rest:
            return control
        peak = self._peak_mb()  # on a GPU it waits for the round's work
        measured = {"parts": self._parts(), "served": self.served, "computed": self.computed, "losses": self.losses}
        told = {**self.told, **measured, "peak_mb": peak}
        trim_memory()  # all contenders stay loaded, but one at a time works
        control.should_training_stop = not (self.asked.ready() if rounds == 1 else self.asked.over(told))
        self.seconds.clear()
        self.served = self.computed = 0
        return control

    def _peak_mb(self) -> float:
        import torch

        if self.trainer.args.use_cpu:
            return memory_mb("VmHWM")
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated()) / 2**20

    def _parts(self) -> dict[str, float]:
        """Seconds by part; DeepSpeed's step, clipping included, is called by accelerate's backward."""
        found = {name: self.seconds.get(name, 0.0) for name in ("get_batch_samples", "compute_loss", "step")}
        backward = self.seconds["backward"] - (found["step"] if self.trainer.is_deepspeed_enabled else 0.0)
        return {
            "data": found["get_batch_samples"],
            "forward": found["compute_loss"],
            "of it the reference's": self.seconds.get("forward", 0.0),
            "backward": backward,
            "optimizer": found["step"] + self.seconds.get("_clip_grad_norm", 0.0),
        }


def trl(setting: Setting, asked: Asked, folder: Path) -> None:
    """TRL's DPOTrainer with the published loss for hard targets, on the same token ids."""
    from benchmarks._train_trl import trainer
    from sparring.stages.train.config import optimizer_steps

    steps = optimizer_steps(len(setting.pairs.rows), 1, GLOBAL_BATCH)
    built, told = trainer(setting, steps * (setting.rounds + 1), folder)
    rounds = Rounds(asked, built, steps, lambda inputs: int(inputs["attention_mask"].sum()), **told)
    if built.ref_model is not None:
        timed(built.ref_model, "forward", rounds.seconds)
    built.train()


def ours(setting: Setting, asked: Asked, folder: Path) -> None:
    """What a worker of the step `train` runs, in a process group of one that Ray Train did not start."""
    from benchmarks._train_ours import trainer
    from sparring.stages.train.config import optimizer_steps

    rows = setting.pairs.rows
    steps = optimizer_steps(len(rows), 1, GLOBAL_BATCH)
    built = trainer(setting, steps * (setting.rounds + 1), folder)
    Rounds(asked, built, steps, lambda inputs: sum(rows[i].tokens for i in inputs["rows"].tolist()))
    built.train()


def reference(setting: Setting, asked: Asked, folder: Path) -> None:
    """The scoring of the step `reference`."""
    from sparring.stages.train.model.scorer import load_scorer, score

    model = load_scorer(setting.pairs.policy, "bfloat16" if setting.gpu else "float32")
    asking = asked.ready()
    while asking:
        asking = asked.over({"scores": score(model, setting.pairs.rows)})


def main(name: str, path: str) -> None:
    """Be the contender `name`."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    setting: Setting = pickle.loads(Path(path).read_bytes())[name]
    {"trl": trl, "ours": ours, "reference": reference}[setting.kind](setting, Asked(), Path(path).parent)


if __name__ == "__main__":
    main(*sys.argv[1:])
