"""What layers keep for the backward pass: the same gradients, to the last bit, in half of the memory."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from sparring.stages.train import memory
from sparring.stages.train.batch.collate import collate
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.model.activations import keep_products
from sparring.stages.train.model.forward import bind, forward

CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=256,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "gpt2": GPT2Config(  # its layers are addmm
        vocab_size=256, n_embd=96, n_layer=16, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}


def pairs() -> list[ResponsePair]:
    rng = random.Random(0)

    def tokens(n: int) -> list[int]:
        return [rng.randrange(256) for _ in range(n)]

    return [ResponsePair(id=str(i), prompt=tokens(60), chosen=tokens(90), rejected=tokens(50)) for i in range(4)]


def trained(model: Any) -> tuple[list[Tensor], int]:
    """The gradients, and the bytes by which memory grew."""
    batch = collate(pairs(), (2,), "mean", model.shared_up_to, model.flat)
    model.zero_grad()
    memory.trim()
    with memory.peak(torch.device("cpu")) as grown:
        z, states = forward(model, batch)
        (z.square().sum() + states.square().sum()).backward()
    return [parameter.grad.clone() for parameter in model.parameters()], grown[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_gradients_in_less_memory(name: str) -> None:
    torch.manual_seed(0)
    model: Any = bind(AutoModelForCausalLM.from_config(CONFIGS[name]), "float32").train()
    trained(model)  # the first pass pays for what later ones find ready
    kept, all_bytes = trained(model)
    keep_products(model)
    again, fewer_bytes = trained(model)
    assert all(map(torch.equal, kept, again))
    assert any(gradient.abs().max() > 0 for gradient in kept)
    assert fewer_bytes < 0.85 * all_bytes
