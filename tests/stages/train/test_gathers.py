"""Weights gathered in bfloat16, by two and by four ranks: the same forward pass, to the last bit; fp32 is published."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig


def gathered(rank: int, ranks: int, port: int, folder: Path) -> dict[str, Any]:
    """Losses and weights after a step, without and with bfloat16, and with a copy of the weights in every two ranks."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in where.items()}
    torch.distributed.init_process_group("gloo")
    from sparring.stages.step import Workers
    from sparring.stages.train.launch.worker import prepare_process

    prepare_process(Workers())
    return {name: _trained(folder, name) for name in ("plain", "bfloat16", "in nodes")}


def _trained(folder: Path, how: str) -> tuple[Tensor, list[Tensor], int]:
    import deepspeed

    from sparring.stages.train.trainer import gathers

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    zero |= {"zero_hpz_partition_size": 2} if how == "in nodes" else {}
    settings = {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": 1,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    if how != "plain":
        gathers.in_bfloat16(engine.module)
    marked = sum(hasattr(parameter, "comm_dtype") for parameter in engine.module.parameters())
    losses = []
    for _ in range(2):
        ids = torch.arange(8)[None] + torch.distributed.get_rank()
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            loss = engine(input_ids=ids, labels=ids).loss
        losses.append(loss.detach())
        engine.backward(loss)
        engine.step()
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return torch.stack(losses), [parameter.detach().clone() for parameter in model.parameters()], marked


@pytest.mark.slow
@pytest.mark.parametrize(("tied", "ranks"), [(True, 2), (False, 4)])
def test_the_same_training_with_half_of_the_bytes(tied: bool, ranks: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 64, "hidden_size": 30, "intermediate_size": 44, "num_hidden_layers": 2}
    config = LlamaConfig(**shape, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
        made = [pool.submit(gathered, rank, ranks, port, tmp_path) for rank in range(ranks)]
        results = [one.result(timeout=300) for one in made]
    for result in results:
        losses, weights, marked = result["plain"]
        assert marked == 0 and losses[0] != losses[1]
        for how in ("bfloat16", "in nodes"):
            others, theirs, marked = result[how]
            assert marked == 14 + (not tied)
            assert torch.equal(losses, others) and all(map(torch.equal, weights, theirs))
        assert not all(torch.equal(one, one.bfloat16().float()) for one in weights)
