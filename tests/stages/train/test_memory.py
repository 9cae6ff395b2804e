"""One copy of the weights under ZeRO-3: the same training, in less memory."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sparring.stages.train.memory import one_copy
from tests.tiny import tiny_policy

STEPS = 3


def trained(folder: Path, once: bool) -> tuple[list[Tensor], int]:
    """The weights after some steps, and the bytes that they and their masters take, in a process of trainings alone."""
    import torch.distributed as dist

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    from sparring.stages.step import Workers
    from sparring.stages.train.launch.worker import prepare_process

    prepare_process(Workers())
    import deepspeed

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = {
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "sub_group_size": 2000},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": 1,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    if once:
        one_copy(engine)
    ids = torch.arange(8)[None]
    for _ in range(STEPS):
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    zero = engine.optimizer
    flat = [*zero.fp32_partitioned_groups_flat, *zero.fp16_partitioned_groups_flat]
    assert len(zero.fp32_partitioned_groups_flat) > 1
    places = {tensor.data_ptr(): tensor.nbytes for tensor in flat}
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return [parameter.detach().clone() for parameter in model.parameters()], sum(places.values())


def test_one_copy_of_the_weights_trains_the_same(tmp_path: Path) -> None:
    folder = tiny_policy(tmp_path / "policy")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        (two, doubled), (one, single) = pool.map(trained, [folder] * 2, [False, True])
    assert doubled == 2 * single
    assert all(torch.equal(a, b) for a, b in zip(two, one, strict=True))
    start = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).parameters()
    assert not any(torch.equal(a, b) for a, b in zip(start, one, strict=True))
