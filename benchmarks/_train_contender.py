"""One contender of training in a process of its own: `_train_contender.py NAME CASES`; CASES: pickled {name: Setting}.

It loads, trains an uncounted first round and reports that it is ready; then it trains one round for each request, all
within one run of its trainer: optimizer, engine and memory are those of a training that goes on.
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


class Caller:
    """The benchmark that started this process: it reads the result of a round and requests the next one."""

    def __init__(self) -> None:
        self.answers = answers()
        self.begun = self.cpu = 0.0

    def ready(self) -> bool:
        """Report that the set-up is done; return whether a round is requested."""
        return self._report({"ready": True})

    def over(self, facts: dict[str, Any]) -> bool:
        """Report what the round took, and `facts`; return whether another round is requested."""
        spent = {"seconds": time.perf_counter() - self.begun, "cpu_seconds": time.process_time() - self.cpu}
        return self._report({**facts, **spent})

    def _report(self, line: dict[str, Any]) -> bool:
        print(json.dumps(line), file=self.answers)
        another = bool(sys.stdin.readline())
        self.begun, self.cpu = time.perf_counter(), time.process_time()
        return another


class Rounds(TrainerCallback):
    """Pauses a Trainer at the end of each round, and measures where the round's time went."""

    def __init__(self, caller: Caller, trainer: Any, steps: int, useful: Callable[[Any], int], **facts: Any) -> None:
        self.caller, self.trainer, self.steps, self.useful, self.facts = caller, trainer, steps, useful, facts
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
        """Time the optimizer's steps; the optimizer exists from now on."""
        stepping = self.trainer.model_wrapped if self.trainer.is_deepspeed_enabled else self.trainer.optimizer
        timed(stepping, "step", self.seconds)
        self.facts["loaded_mb"] = memory_mb("VmRSS")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Answer at the end of a round."""
        rounds, rest = divmod(state.global_step, self.steps)
        if rest:
            return control
        peak = self._peak_mb()  # on a GPU it waits for the round's work
        measured = {"parts": self._parts(), "served": self.served, "computed": self.computed, "losses": self.losses}
        facts = {**self.facts, **measured, "peak_mb": peak}
        trim_memory()  # all contenders stay loaded, but one at a time works
        control.should_training_stop = not (self.caller.ready() if rounds == 1 else self.caller.over(facts))
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


def trl(setting: Setting, caller: Caller, folder: Path) -> None:
    """TRL's DPOTrainer with the published loss for hard targets, on the same token ids."""
    from benchmarks._train_trl import trainer
    from sparring.stages.train.config import optimizer_steps

    steps = optimizer_steps(len(setting.pairs.rows), 1, GLOBAL_BATCH)
    built, facts = trainer(setting, steps * (setting.rounds + 1), folder)
    rounds = Rounds(caller, built, steps, lambda inputs: int(inputs["attention_mask"].sum()), **facts)
    if built.ref_model is not None:
        timed(built.ref_model, "forward", rounds.seconds)
    built.train()


def ours(setting: Setting, caller: Caller, folder: Path) -> None:
    """What a worker of the step `train` runs, in a process group of one that Ray Train did not start."""
    from benchmarks._train_ours import trainer
    from sparring.stages.train.config import optimizer_steps

    rows = setting.pairs.rows
    steps = optimizer_steps(len(rows), 1, GLOBAL_BATCH)
    built = trainer(setting, steps * (setting.rounds + 1), folder)
    Rounds(caller, built, steps, lambda inputs: sum(rows[i].tokens for i in inputs["rows"].tolist()))
    built.train()


def reference(setting: Setting, caller: Caller, folder: Path) -> None:
    """The scoring of the step `reference`."""
    from sparring.stages.train.model.scorer import load_scorer, score

    model = load_scorer(setting.pairs.policy, "bfloat16" if setting.gpu else "float32")
    requested = caller.ready()
    while requested:
        requested = caller.over({"scores": score(model, setting.pairs.rows)})


def main(name: str, path: str) -> None:
    """Be the contender `name`."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    setting: Setting = pickle.loads(Path(path).read_bytes())[name]
    {"trl": trl, "ours": ours, "reference": reference}[setting.kind](setting, Caller(), Path(path).parent)


if __name__ == "__main__":
    main(*sys.argv[1:])
