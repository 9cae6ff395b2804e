"""Chunked log-probs: equal to those of the full logits, with all gradients, and without the full logits."""

from __future__ import annotations

import math
import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sparring.stages.errors import DataError
from sparring.stages.train.batch.collate import collate
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.model import lm_head
from sparring.stages.train.model.forward import bind, forward
from sparring.stages.train.model.lm_head import Head
from tests.refusals import refused
from tests.tiny import tiny_policy

N, H, V = 10, 6, 23


@pytest.fixture(autouse=True)
def chunks_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "CHUNK", 4)


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((N, H), (V, H), (V,)))
    return hidden, torch.randint(0, V, (N,)), weight, bias, torch.randn(N)


def full(hidden: Tensor, tokens: Tensor, head: Head) -> Tensor:
    logits = head.scale * (hidden @ head.weight.T + (0 if head.bias is None else head.bias))
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits, 1)[torch.arange(len(tokens)), tokens]


def test_by_hand() -> None:
    weight = torch.tensor([[math.log(2.0), 0.0], [0.0, math.log(3.0)], [0.0, 0.0]])
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], requires_grad=True)
    log_p = lm_head.log_probs(hidden, torch.tensor([0, 2, 1]), Head(weight=weight))  # odds 2:1:1, 1:3:1, 2:3:1
    assert log_p.tolist() == pytest.approx([math.log(2 / 4), math.log(1 / 5), math.log(3 / 6)], abs=1e-6)
    log_p.sum().backward()
    first = [(1 - 2 / 4) * math.log(2), -1 / 4 * math.log(3)]
    assert hidden.grad is not None and hidden.grad[0].tolist() == pytest.approx(first, abs=1e-6)


SCALES = pytest.mark.parametrize("scale", [1.0, 1.7])


@SCALES
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_equal_those_of_full_logits(biased: bool, softcap: float | None, scale: float) -> None:
    hidden, tokens, weight, bias, factors = tensors()
    leaves = [hidden, weight, *([bias] if biased else [])]
    head = Head(weight=weight, bias=bias if biased else None, softcap=softcap, scale=scale)
    found, expected = lm_head.log_probs(hidden, tokens, head), full(hidden, tokens, head)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    ours = torch.autograd.grad((factors * found).sum(), leaves)
    theirs = torch.autograd.grad((factors * expected).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@SCALES
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_frozen_head_needs_no_logits_in_its_backward_pass(softcap: float | None, scale: float) -> None:
    hidden, tokens, weight, _, factors = tensors()
    head = Head(weight=weight.detach(), softcap=softcap, scale=scale)
    (theirs,) = torch.autograd.grad((factors * full(hidden, tokens, head)).sum(), hidden)
    loss = (factors * lm_head.log_probs(hidden, tokens, head)).sum()
    with Sizes() as backward:
        (ours,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert backward.largest <= N * H


@SCALES
def test_residuals_give_the_gradient_of_all_log_probs(scale: float) -> None:
    hidden, tokens, weight, bias, _ = tensors()
    head = Head(weight=weight, bias=bias, softcap=2.0, scale=scale)
    with torch.no_grad():
        parts = list(lm_head.chunks(hidden, tokens, head))
        assert [len(log_p) for _, log_p, _ in parts] == [4, 4, 2]
        found = sum(residual.T @ hidden[rows] for rows, _, residual in parts)
    log_p = full(hidden, tokens, head)
    (expected,) = torch.autograd.grad(log_p.sum(), weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([p for _, p, _ in parts]), log_p.detach())


def test_under_autocast_the_product_is_bf16_and_the_softmax_fp32() -> None:
    hidden, tokens, weight, _, factors = tensors()
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = lm_head.log_probs(hidden, tokens, Head(weight=weight))
        every = [lm_head.log_probs(hidden.detach(), torch.full((N,), v), Head(weight=weight)) for v in range(V)]
    assert found.dtype == torch.float32
    expected = torch.log_softmax(logits, 1)[torch.arange(N), tokens]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.stack(every).exp().sum(0).tolist() == pytest.approx([1.0] * N, abs=1e-5)
    ours = torch.autograd.grad((factors * found).sum(), [hidden, weight])
    theirs = torch.autograd.grad((factors * full(hidden, tokens, Head(weight=weight))).sum(), [hidden, weight])
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


class Sizes(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        outputs = made if isinstance(made, (list, tuple)) else [made]
        self.largest = max([self.largest, *(one.numel() for one in outputs if isinstance(one, Tensor))])
        return made


@pytest.mark.parametrize("trained", [True, False], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("layout", [10_000, 0], ids=["shared prompt", "two sequences"])
def test_the_full_logits_never_exist(layout: int, trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 response tokens and 4,096 words, in chunks of 32: forward and backward of the bound model."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=1, attn_implementation="sdpa")
    model = bind(LlamaForCausalLM(config), "float32")
    model.lm_head.weight.requires_grad_(trained)
    rows = [ResponsePair(id=str(i), prompt=[5, 6], chosen=[*range(100)], rejected=[*range(7, 107)]) for i in range(2)]
    sizes = {}
    for chunk in (32, 400):
        monkeypatch.setattr(lm_head, "CHUNK", chunk)
        with Sizes() as seen:
            forward(model, collate(rows, (2,), "mean", layout))[0].sum().backward()
        sizes[chunk] = seen.largest
    assert sizes == {32: 32 * 4096, 400: 400 * 4096}  # both greater than the weight and its gradient, 4096 * 32


def test_without_tokens_the_head_gives_logits() -> None:
    linear = nn.Linear(H, V)
    hidden = torch.randn(N, H)
    expected = linear(hidden)
    lm_head.chunked(linear, None)
    torch.testing.assert_close(linear(hidden), expected, rtol=0, atol=0)


def test_a_head_that_is_not_linear_is_refused() -> None:
    with refused(DataError, "Bilinear"):
        lm_head.chunked(nn.Bilinear(2, 2, 2), None)


ROWS = [
    ResponsePair(id="a", prompt=[5, 600, 7000], chosen=[11, 42000, 13, 2], rejected=[15, 2]),
    ResponsePair(id="b", prompt=[17], chosen=[18, 19], rejected=[20, 31000, 22, 23, 24, 2]),
]


def loss_of(model: Any) -> Tensor:
    z, states = forward(model, collate(ROWS, (2,), "mean", 99))
    return (z * torch.tensor([1.0, -0.5, 2.0, 0.25])).sum().float() + states.square().sum()


def zero3(rank: int, world: int, port: int, folders: dict[bool, Path]) -> list[dict[str, Tensor]]:
    """Gradients of a batch under DeepSpeed ZeRO-3 in each of CASES, in a process of its own; equal on all ranks."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")
    os.environ.update(zip(names, map(str, (rank, rank, world, "127.0.0.1", port, "cpu")), strict=True))
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    settings = {
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": 1,
    }
    kept = HfDeepSpeedConfig(settings)  # from_pretrained looks for it
    lm_head.CHUNK = 4
    return [_zero3_gradients(folders[tied], trained, kept.config) for tied, trained in CASES]


def _zero3_gradients(folder: Path, trained: bool, settings: dict[str, Any]) -> dict[str, Tensor]:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    model: Any = bind(AutoModelForCausalLM.from_pretrained(folder), "float32")
    weight = model.get_output_embeddings().weight.requires_grad_(trained)
    given = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(given, lr=0.0), config=settings)
    assert weight.numel() == 0  # partitioned: gathered around its module alone
    engine.backward(loss_of(engine))
    return {name: safe_get_full_grad(p).clone() for name, p in model.named_parameters() if p.requires_grad}


CASES = [(True, True), (False, True), (False, False)]
"""Head tied to the embedding, head trained."""


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_under_zero3_the_weight_is_there_for_both_passes(world: int, tmp_path: Path) -> None:
    folders = {tied: tiny_policy(tmp_path / str(tied), tied=tied) for tied in (True, False)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(world, mp_context=multiprocessing.get_context("spawn")) as pool:
        ranks = [pool.submit(zero3, rank, world, port, folders) for rank in range(world)]
        found, *others = [rank.result() for rank in ranks]
    for (tied, trained), ours, *theirs in zip(CASES, found, *others, strict=True):
        model: Any = bind(AutoModelForCausalLM.from_pretrained(folders[tied]), "float32")
        model.get_output_embeddings().weight.requires_grad_(trained)
        loss_of(model).backward()
        expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert ours.keys() == expected.keys() and ("lm_head.weight" in ours) is (trained and not tied)
        for name, gradient in expected.items():
            assert gradient is not None and gradient.abs().max() > 1e-3
            for gathered in (ours, *theirs):
                torch.testing.assert_close(gathered[name], gradient, rtol=1e-4, atol=1e-4)
