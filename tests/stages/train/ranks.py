"""Training steps in processes of their own, one a rank, on gloo: all of the worker but Ray Train."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from sparring.stages.step import Job
from sparring.stages.train.launch import worker
from sparring.stages.train.launch.mailbox import Sender, mailbox


def train(job: Job, attempts: Sequence[str] = ("first",)) -> list[dict[str, Any]]:
    """Run the job's attempts one after the other and return each one's result: files and summary."""
    workers = job.workers.count
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        made = list(pool.map(_rank, [(job, attempts, rank, port) for rank in range(workers)]))
    return made[0]


def _rank(given: tuple[Job, Sequence[str], int, int]) -> list[Any]:
    job, attempts, rank, port = given
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job.workers.count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()}, MASTER_ADDR="127.0.0.1")
    made: list[Any] = []
    for attempt in attempts:
        one = replace(job, attempt=attempt)
        mailbox(one).mkdir(parents=True, exist_ok=True)
        unset_hf_deepspeed_config()  # of the attempt before: a worker's process has one training alone
        made.append(worker.train_rank(one, rank, Sender(mailbox(one) / f"rank-{rank}.jsonl")))
    return made


def steps(made: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the record of every optimizer step of a result."""
    lines = Path(made["files"]["metrics.jsonl"]).read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "step" in record]


def folder(made: dict[str, Any]) -> Path:
    """Return the published folder of a result."""
    return Path(made["files"]["model/config.json"]).parent
