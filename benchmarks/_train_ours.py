"""Our trainer as a worker of the step `train` builds it, in a process group of one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from benchmarks._jobs import step_job
from benchmarks._train_pairs import ALPHA, BETA, GLOBAL_BATCH, LR, MAX_LENGTH, RANK, Setting
from sparring.pipeline.cli.prepare import plan_of
from sparring.pipeline.store.files import external
from sparring.stages.step import Job
from sparring.stages.train.config import TRAIN
from sparring.stages.train.launch import worker
from sparring.stages.train.launch.mailbox import Sender, mailbox


def trainer(setting: Setting, steps: int, folder: Path) -> Any:
    """Return the trainer of the step's own session, on ZeRO-3; it writes no checkpoint."""
    made = job(setting, steps, folder)
    _group_of_one("nccl" if setting.gpu else "gloo")
    worker.prepare_process(made.workers)
    from sparring.stages.train.batch.order import deal

    trainer, rows = made.settings.trainer, setting.pairs.rows
    order, _ = deal([row.shared_length for row in rows], trainer.epochs, trainer.global_batch, made.settings.seed)
    mailbox(made).mkdir(parents=True)
    session = worker.Session(made, 0, Sender(Path(os.devnull)), rows, order)
    if not setting.options.get("shared", True):
        session.trainer.shared_up_to = 0
    return session.trainer


def job(setting: Setting, steps: int, folder: Path) -> Job:
    """Return the job of the step: what the configuration gives it, but for what all contenders have in common."""
    chosen = [
        f"hardware={'cuda' if setting.gpu else 'cpu'}",
        "hardware.workers=1",
        f"hardware.micro_batch={setting.micro_batch}",
        "experiment=sppo",
        "objective=sppo_hard",
        f"objective.beta={BETA}",
        "trainer.optimizer=adamw",
        f"trainer.dtype={'bfloat16' if setting.gpu else 'float32'}",
        f"adapter={setting.adapter}",
        *([f"trainer.adapter.rank={RANK}", f"trainer.adapter.alpha={ALPHA}"] if setting.adapter != "off" else ()),
        f"trainer.lr={LR}",
        "trainer.warmup_ratio=0",
        f"trainer.epochs={setting.rounds + 1}",
        f"trainer.global_batch={GLOBAL_BATCH}",
        f"trainer.max_length={MAX_LENGTH}",
        f"trainer.checkpoint_steps={steps + 1}",
        *setting.options.get("overrides", ()),
    ]
    step = next(step for step in plan_of({"": chosen}).steps.values() if step.spec == TRAIN)
    inputs = [setting.pairs.samples, external("policy", setting.pairs.policy)]
    return step_job(TRAIN, step.settings, inputs, folder / "train", step.workers)


def _group_of_one(backend: str) -> None:
    """What Ray Train would have done."""
    import torch.distributed as dist

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    dist.init_process_group(backend)
