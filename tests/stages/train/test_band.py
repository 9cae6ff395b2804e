from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparring.stages.train.loss import band
from sparring.stages.train.loss.head_gradients import products
from sparring.stages.train.model.lm_head import Head


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_geometry_by_hand() -> None:
    rho, r_star = band.geometry(column(4.0, 9.0, 3.0)[None])  # |s_w| = 2, |s_l| = 3
    assert (rho.item(), r_star.item()) == pytest.approx((0.5, 1.5), abs=1e-12)


@pytest.mark.parametrize(
    ("rho", "d_w", "d_l", "inside"),
    [
        (0.5, 0.74, 1.0, False),  # the band is 0.75 to 3
        (0.5, 0.76, 1.0, True),
        (0.5, 2.99, 1.0, True),
        (0.5, 3.01, 1.0, False),
        (0.5, -1.0, -1.0, False),
        (0.5, 0.0, 1.0, False),
        (0.5, 1.0, -1.0, False),
        (-0.5, 1.5, 1.0, False),  # counted apart
    ],
)
def test_in_band_by_hand(rho: float, d_w: float, d_l: float, inside: bool) -> None:
    assert band.in_band(column(rho), column(1.5), column(d_w), column(d_l)).item() is inside


def test_record_by_hand_and_sums_add_up() -> None:
    # |s_w| = 2, |s_l| = 3 in all four: in band, out of band, reversed, rho <= 0
    pairs = torch.stack([column(4, 9, 3), column(4, 9, 3), column(4, 9, 3), column(4, 9, -1.5)])
    d_w, d_l = column(2, 8, -1, 1), column(2, 2, 1, 2)
    halves = [band.sums(pairs[part], d_w[part], d_l[part]) for part in (slice(0, 1), slice(1, 4))]
    found = band.record(halves[0] + halves[1], 4)
    assert found == pytest.approx(
        {
            "rho": (3 * 0.5 - 0.25) / 4,
            "in_band": 0.25,
            "reversed": 0.25,
            "rho_negative": 0.25,
            "r_star": 1.5,
            "incentive_ratio": math.exp((0 + math.log(4) - math.log(2)) / 3),
        },
        abs=1e-12,
    )


def test_all_pairs_reversed_have_no_ratio() -> None:
    found = band.record(band.sums(column(4, 9, 3)[None], column(-1.0), column(1.0)), 1)
    assert "incentive_ratio" not in found and found["reversed"] == 1


def test_a_gradient_of_zero_stays_finite() -> None:
    found = band.record(band.sums(column(0, 9, 0)[None], column(1.0), column(1.0)), 1)
    assert all(math.isfinite(value) for value in found.values())


def log_prob(weight: Tensor, x: Tensor, tokens: Tensor) -> Tensor:
    return torch.log_softmax(x @ weight.T, 1)[torch.arange(len(x)), tokens].sum()


@pytest.mark.parametrize("seed", range(4))
def test_a_small_step_separates_the_pair_just_inside_the_band_and_not_just_outside(seed: int) -> None:
    """The theorem, on a softmax model whose only parameter is the head."""
    torch.manual_seed(seed)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    x_w = torch.randn(4, 5, dtype=torch.float64)
    x_l = 1.5 * torch.cat([x_w, x_w[:1]]) + 0.1 * torch.randn(5, 5, dtype=torch.float64)
    y_w = torch.tensor([1, 2, 3, 4])
    y_l = torch.tensor([1, 2, 3, 5, 6])
    with torch.no_grad():
        head = Head(weight=weight.float())
        rho, r_star = band.geometry(products(x_w.float(), y_w, x_l.float(), y_l, head)[None])
    s_w = torch.autograd.grad(log_prob(weight, x_w, y_w), weight)[0]
    s_l = torch.autograd.grad(log_prob(weight, x_l, y_l), weight)[0]
    assert 0.1 < rho.item() < 0.99
    low, high = (rho * r_star).item(), (r_star / rho).item()
    edges = (
        (low * 0.98, False, True),
        (low * 1.02, True, True),
        (high * 0.98, True, True),
        (high * 1.02, True, False),
    )
    for ratio, up, down in edges:
        inside = band.in_band(rho, r_star, column(ratio), column(1.0)).item()
        stepped = weight.detach() + 1e-6 * (ratio * s_w - s_l)
        rises = log_prob(stepped, x_w, y_w) > log_prob(weight, x_w, y_w)
        falls = log_prob(stepped, x_l, y_l) < log_prob(weight, x_l, y_l)
        assert (rises.item(), falls.item(), inside) == (up, down, up and down), ratio
