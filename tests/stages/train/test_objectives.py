from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.train.config import ObjectiveIdentity
from stages.train.objectives import Scores, loss_scale, saturation, sppo, sppo_incentives


def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    h_w, h_l = torch.randn(2, 6, generator=generator, dtype=torch.float64) * 5
    p_w, p_l = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    return h_w, h_l, p_w, p_l


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def objective(beta: float, scale: float | None = None) -> ObjectiveIdentity:
    return ObjectiveIdentity(name="sppo", beta=beta, loss_scale=scale)


def moved(h_w: Tensor, h_l: Tensor, p_w: Tensor, p_l: Tensor) -> Scores:
    """Scores whose reference is 0."""
    return Scores(z_w=h_w, z_l=h_l, ref_w=torch.zeros_like(h_w), ref_l=torch.zeros_like(h_l), p_w=p_w, p_l=p_l)


def test_by_hand() -> None:
    # beta = 0.1: (0.1*2 - 0.3)^2 = 0.01; (0.1*(-1) + 0.4)^2 = 0.09; half the sum is 0.05
    loss = sppo(one(2.0), one(-1.0), one(0.8), one(0.1), beta=0.1)
    assert loss.item() == pytest.approx(0.05, abs=1e-15)


def test_scaled_loss_is_the_published_one() -> None:
    h_w, h_l, p_w, p_l = pairs()
    eta = 1000.0
    published = 0.5 * ((h_w - eta * (p_w - 0.5)) ** 2 + (h_l - eta * (p_l - 0.5)) ** 2)
    ours = loss_scale(objective(1 / eta)) * sppo(h_w, h_l, p_w, p_l, beta=1 / eta)
    torch.testing.assert_close(ours, published, rtol=1e-12, atol=0)


def test_given_scale_is_kept() -> None:
    assert loss_scale(objective(0.001, 3.0)) == 3.0


@pytest.mark.parametrize("scale", [1.0, 2.5, 1e6])
def test_incentives_are_the_gradient(scale: float) -> None:
    h_w, h_l, p_w, p_l = pairs()
    h_w.requires_grad_()
    h_l.requires_grad_()
    (scale * sppo(h_w, h_l, p_w, p_l, beta=0.01)).sum().backward()
    d_w, d_l = (scale * d for d in sppo_incentives(h_w.detach(), h_l.detach(), p_w, p_l, 0.01))
    torch.testing.assert_close(d_w, -h_w.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(d_l, h_l.grad, rtol=1e-10, atol=1e-12)


def test_incentives_by_hand() -> None:
    # eta = 10: d_w = 10*(0.8 - 0.5) - 2 = 1; d_l = -1 - 10*(0.1 - 0.5) = 3
    scale = loss_scale(objective(0.1))
    d_w, d_l = (scale * d for d in sppo_incentives(one(2.0), one(-1.0), one(0.8), one(0.1), 0.1))
    assert (d_w.item(), d_l.item()) == pytest.approx((1.0, 3.0), abs=1e-12)


def test_saturation_is_one_where_the_loss_is_least() -> None:
    _, _, p_w, p_l = pairs()
    h_w, h_l = 20 * (p_w - 0.5), 20 * (p_l - 0.5)
    whole, norm = saturation(objective(1 / 20), moved(h_w, h_l, p_w, p_l))
    assert (whole / norm).item() == pytest.approx(1.0, abs=1e-12)
    assert sppo(h_w, h_l, p_w, p_l, beta=1 / 20).abs().max().item() < 1e-24
    halfway, norm = saturation(objective(1 / 20), moved(h_w / 2, h_l / 2, p_w, p_l))
    assert (halfway / norm).item() == pytest.approx(0.5, abs=1e-12)
