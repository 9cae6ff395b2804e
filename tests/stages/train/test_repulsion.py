from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from sparring.stages.train.batch.collate import collate, pool_weights
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.config import OffRepulsion
from sparring.stages.train.loss.loss import pair_losses
from sparring.stages.train.loss.repulsion import distance, loss
from sparring.stages.train.model.forward import bind, forward, pool
from sparring.stages.train.objectives.sppo import Sppo
from tests.stages.train.rig import REPULSIONS, repelling, small_llama

ROWS = [
    ResponsePair(id="a", prompt=[5, 6], chosen=[7, 8, 9, 2], rejected=[10, 11, 2], p_w=0.9, p_l=0.3),
    ResponsePair(id="b", prompt=[12], chosen=[13, 14], rejected=[15, 16, 17, 18, 2], p_w=0.8, p_l=0.2),
]
NO_OBJECTIVE = Sppo(name="sppo", beta=1e-9, loss_scale=1.0)


def term(name: str, d: Tensor, margin: float = 1.0) -> Tensor:
    return loss(repelling(name, margin), d)


def test_distance_by_hand() -> None:
    x_w = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    x_l = torch.tensor([[0.0, 0.5], [-4.0, 0.0], [1.0, 0.0]])
    expected = torch.tensor([math.sqrt(2), 2.0, 1e-6])
    torch.testing.assert_close(distance(x_w, x_l), expected, rtol=1e-6, atol=1e-9)


def test_terms_by_hand() -> None:
    d = torch.tensor([0.6, 1.5])
    assert term("hinge", d, 1.0).tolist() == pytest.approx([0.16, 0.0])
    assert term("hinge", d, 2.0).tolist() == pytest.approx([1.96, 0.25])
    assert term("neg_sq", d, 1.0).tolist() == pytest.approx([-0.36, -2.25])
    assert term("cosine", d, 1.0).tolist() == pytest.approx([0.82, -0.125])
    assert term("log", d, 1.0).tolist() == pytest.approx([-math.log(0.360001), -math.log(2.250001)])


def test_cosine_is_the_cosine() -> None:
    x_w, x_l = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.nn.functional.cosine_similarity(x_w, x_l)
    torch.testing.assert_close(term("cosine", distance(x_w, x_l)), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", REPULSIONS)
def test_equal_states_have_finite_value_and_gradient(name: str) -> None:
    x_w = torch.ones(2, 4, requires_grad=True)
    x_l = torch.ones(2, 4, requires_grad=True)
    total = term(name, distance(x_w, x_l)).sum()
    total.backward()
    assert x_w.grad is not None and x_l.grad is not None
    assert torch.isfinite(total) and torch.isfinite(x_w.grad).all() and torch.isfinite(x_l.grad).all()


@pytest.mark.parametrize("name", REPULSIONS)
def test_every_term_pushes_apart(name: str) -> None:
    x_w, x_l = torch.tensor([[1.0, 0.2]], requires_grad=True), torch.tensor([[1.0, -0.2]])
    before = distance(x_w, x_l)
    (gradient,) = torch.autograd.grad(term(name, before).sum(), x_w)
    assert distance(x_w.detach() - 0.01 * gradient, x_l) > before.detach()


def test_pooling_leaves_the_end_of_turn_out() -> None:
    weights = collate(ROWS, (2,), "mean", 99)["pool_weights"]
    assert weights[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert weights[1].tolist() == pytest.approx([1 / 2, 1 / 2, 0, 0, 0])  # capped: no end-of-turn
    last = collate(ROWS, (2,), "last", 99)["pool_weights"]
    assert last.tolist() == [
        [0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0],
    ]


def test_a_response_of_end_of_turn_alone_is_pooled_over_it() -> None:
    batch = collate([ResponsePair(id="a", prompt=[5], chosen=[2], rejected=[6, 2])], (2,), "mean", 99)
    assert batch["pool_weights"].tolist() == [[1, 0], [1, 0]]


def test_pool_is_the_weighted_mean() -> None:
    states = torch.arange(12.0).view(1, 4, 3)
    weights = pool_weights(torch.tensor([[False, True, True, False]]), "mean")
    assert pool(states, weights).tolist() == [[4.5, 5.5, 6.5]]


def repel(model: LlamaForCausalLM, name: str) -> tuple[Tensor, float]:
    """Loss of the repulsion term alone (the objective's gradient is below rounding) and the mean distance."""
    batch = collate(ROWS, (2,), "mean", 99)
    z, states = forward(model, batch)
    total, _ = pair_losses(z, states, batch, NO_OBJECTIVE, repelling(name, 2.0))
    return total.mean(), distance(*states.detach().chunk(2)).mean().item()


@pytest.mark.parametrize("name", REPULSIONS)
def test_gradient_reaches_the_trunk_and_distance_grows(name: str) -> None:
    model = small_llama()
    bind(model, "float32")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    distances = []
    for step in range(5):
        loss, apart = repel(model, name)
        distances.append(apart)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            trunk = [p.grad for n, p in model.named_parameters() if ".layers." in n and "norm" not in n]
            assert all(g is not None and g.abs().max() > 1e-6 for g in trunk)
        optimizer.step()
    assert distances == sorted(distances) and distances[-1] > distances[0] + 1e-3


def test_off_has_no_gradient_from_the_states() -> None:
    model = small_llama()
    bind(model, "float32")
    batch = collate(ROWS, (2,), "mean", 99)
    z, states = forward(model, batch)
    off = OffRepulsion(name="off", pooling="mean")
    total, _ = pair_losses(z.detach(), states, batch, NO_OBJECTIVE, off)
    assert not total.requires_grad
