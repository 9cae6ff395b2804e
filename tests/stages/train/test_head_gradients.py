from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from sparring.stages.train.batch.collate import collate
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.loss import band, head_gradients
from sparring.stages.train.loss.head_gradients import add_gradient, products
from sparring.stages.train.model.lm_head import Head
from sparring.stages.train.model.scorer import bind_checked
from sparring.stages.train.trainer.instruments import Instruments
from tests.stages.train.rig import OFF, REWARD, SMALL, settings, small_llama

ROWS = [
    ResponsePair(id="a", prompt=[5, 6], chosen=[7, 8, 9, 2], rejected=[10, 11, 2], p_w=0.9, p_l=0.3),
    ResponsePair(id="b", prompt=[12], chosen=[13, 14], rejected=[15, 16, 17, 18, 2], p_w=0.8, p_l=0.2),
]
HEADS = pytest.mark.parametrize(
    ("bias", "softcap", "scale"),
    [(False, None, 1.0), (True, None, 1.0), (False, 10.0, 1.0), (True, 10.0, 0.6)],
    ids=["", "bias", "cap", "scale"],
)


def random_head(v: int, h: int, bias: bool, softcap: float | None, scale: float) -> Head:
    weight = torch.randn(v, h)
    return Head(weight=weight.requires_grad_(), bias=torch.randn(v) if bias else None, softcap=softcap, scale=scale)


def gradient(x: Tensor, tokens: Tensor, head: Head) -> Tensor:
    """By autograd, through torch's own log_softmax."""
    u = head.scale * nn.functional.linear(x, head.weight, head.bias)
    logits = u if head.softcap is None else head.softcap * torch.tanh(u / head.softcap)
    z = torch.log_softmax(logits, 1)[torch.arange(len(x)), tokens].sum()
    return torch.autograd.grad(z, head.weight)[0]


@HEADS
def test_gradient_over_several_chunks_equals_autograd(bias: bool, softcap: float | None, scale: float) -> None:
    torch.manual_seed(0)
    n, v, h = head_gradients.CHUNK + 30, head_gradients.COLUMNS + 50, 6
    head, x, tokens = random_head(v, h, bias, softcap, scale), torch.randn(n, h), torch.randint(v, (n,))
    total = torch.zeros(v, h)
    with torch.no_grad():
        add_gradient(total, x, tokens, head)
    torch.testing.assert_close(total, gradient(x, tokens, head), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("h", [4, 40], ids=["from the gradients", "by the Gram identity"])
@HEADS
def test_products_equal_autograd(bias: bool, softcap: float | None, scale: float, h: int) -> None:
    torch.manual_seed(1)
    head = random_head(head_gradients.COLUMNS + 50, h, bias, softcap, scale)
    x_w, x_l = torch.randn(7, h), torch.randn(12, h) + 1
    y_w, y_l = (torch.randint(6, (n,)) + head_gradients.COLUMNS - 3 for n in (7, 12))
    x_w += 1
    with torch.no_grad():
        found = products(x_w, y_w, x_l, y_l, head)
    s_w, s_l = gradient(x_w, y_w, head).double(), gradient(x_l, y_l, head).double()
    expected = torch.stack([(s_w * s_w).sum(), (s_l * s_l).sum(), (s_w * s_l).sum()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert found[2].abs() > 1


def llama(tied: bool) -> Any:
    return small_llama(initializer_range=0.3, tie_word_embeddings=tied)


def gemma() -> Any:
    torch.manual_seed(0)
    caps: dict[str, Any] = {"final_logit_softcapping": 1.0, "attn_logit_softcapping": None}  # plain attention
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=16, initializer_range=0.3, **caps))


def granite() -> Any:
    torch.manual_seed(0)
    return GraniteForCausalLM(GraniteConfig(**SMALL, initializer_range=0.3, logits_scaling=0.5))


MODELS = {"tied": lambda: llama(True), "untied": lambda: llama(False), "capped": gemma, "scaled": granite}


@pytest.mark.parametrize("layout", [99, 0], ids=["shared prompt", "two sequences"])
@pytest.mark.parametrize("name", MODELS)
def test_what_the_instruments_see_is_the_gradient_through_the_models_own_head(
    name: str, layout: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed over the chosen and the rejected responses of a batch; per pair in the products."""
    model: Any = MODELS[name]()
    expected = [through_head(model, row.prompt, r) for row in ROWS for r in (row.chosen, row.rejected)]
    instruments = Instruments(bind_checked(model, "float32"), settings(repulsion=OFF, calibration=REWARD))
    seen: list[Tensor] = []
    monkeypatch.setattr(band, "sums", lambda products, d_w, d_l: seen.append(products))
    instruments.forward(model, collate(ROWS, (2,), "mean", layout), 0)
    found = instruments.gradients
    assert found is not None and found.abs().max() > 0.1
    torch.testing.assert_close(found[0], expected[0] + expected[2], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[1], expected[1] + expected[3], rtol=1e-3, atol=1e-4)
    for pair, (s_w, s_l) in zip(seen[0], [expected[:2], expected[2:]], strict=True):
        by_hand = [(s_w * s_w).sum(), (s_l * s_l).sum(), (s_w * s_l).sum()]
        torch.testing.assert_close(pair.float(), torch.stack(by_hand), rtol=1e-3, atol=1e-3)


def through_head(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """Autograd of a response's log-prob, by the model's own forward, for a head of its own with the same weight."""
    head = model.lm_head.weight
    alone = nn.Parameter(head.detach().clone())
    model.lm_head.weight = alone
    ids = torch.tensor([prompt + response])
    log_probs = torch.log_softmax(type(model).forward(model, input_ids=ids).logits[0], dim=-1)
    z = torch.stack([log_probs[t - 1, ids[0, t]] for t in range(len(prompt), ids.shape[1])]).sum()
    (found,) = torch.autograd.grad(z, alone)
    model.lm_head.weight = head
    return found
