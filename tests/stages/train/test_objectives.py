"""The objectives on numbers: by hand, against their own autograd, under the gate, at their minima."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring.stages.train.objectives.base import MarginObjective, Objective, Scores
from sparring.stages.train.objectives.dpo import Dpo
from sparring.stages.train.objectives.inpo import Inpo
from sparring.stages.train.objectives.ipo import Ipo
from sparring.stages.train.objectives.simpo import Simpo
from sparring.stages.train.objectives.spo import Spo
from sparring.stages.train.objectives.sppo import Sppo


def sppo(name: Any = "sppo", beta: float = 0.1, scale: float | None = None) -> Sppo:
    return Sppo(name=name, beta=beta, loss_scale=scale)


def dpo(smoothing: float = 0.0) -> Dpo:
    return Dpo(name="dpo", beta=0.5, label_smoothing=smoothing, loss_scale=None)


def ipo(length_normalize: bool = False, tau: float = 0.1) -> Ipo:
    return Ipo(name="ipo", tau=tau, length_normalize=length_normalize, loss_scale=None)


def spo(alpha: float, kappa: float = 0.0, z_min: float = -1.0) -> Spo:
    return Spo(name="spo", alpha=alpha, z_min=z_min, kappa=kappa, loss_scale=None)


INPO = Inpo(name="inpo", tau=0.25, inpo_eta=0.5, loss_scale=None)
SIMPO = Simpo(name="simpo", beta=2.0, gamma=0.5, loss_scale=None)
ALL: list[Objective] = [
    *(sppo(name) for name in ("sppo", "sppo_single", "sppo_hard")),
    *(dpo(smoothing) for smoothing in (0.0, 0.1)),
    *(ipo(length_normalize) for length_normalize in (False, True)),
    *(spo(alpha, kappa) for alpha, kappa in ((3.0, 0.0), (3.0, 0.7), (0.3, 0.0))),
    INPO,
    SIMPO,
]
LOG_PROBS = {"z_w": -4.0, "z_l": -6.0, "ref_w": -6.0, "ref_l": -5.0, "base_w": -7.0, "base_l": -5.0}
PAIR = LOG_PROBS | {"n_w": 4.0, "n_l": 2.0, "p_w": 0.8, "p_l": 0.1, "p_wl": 0.7, "label": 1.0}
"""h_w = 2, h_l = -1, m = 3; m_theta = 2, m_{t-1} = -1, m_0 = -2; mean log-probs -1 and -3."""


def one(**changes: float) -> Scores:
    return Scores(**{name: torch.tensor([value], dtype=torch.float64) for name, value in {**PAIR, **changes}.items()})


def many(size: int = 60, spread: float = 5.0) -> Scores:
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(size, generator=generator, dtype=torch.float64) * spread for name in PAIR}
    for name in ("p_w", "p_l", "p_wl", "label"):
        values[name] = torch.rand(size, generator=generator, dtype=torch.float64)
    values["label"] = 0.5 + values["label"] / 2
    for name in ("n_w", "n_l"):
        values[name] = torch.randint(1, 20, (size,), generator=generator).double()
    return Scores(**values)


def value(objective: Objective, scores: Scores) -> float:
    return objective.loss(scores).item()


BY_HAND = [
    (sppo(), 0.5 * (0.1**2 + 0.3**2), 0.1 * 0.1, 0.1 * 0.3),
    (sppo("sppo_single"), 0.5 * (0.0 + 0.1**2), 0.0, 0.1 * 0.1),
    (sppo("sppo_hard"), 0.5 * (0.3**2 + 0.4**2), 0.1 * 0.3, 0.1 * 0.4),
    (dpo(), math.log1p(math.exp(-1.5)), 0.5 * 0.18242552380635635, 0.5 * 0.18242552380635635),
    (dpo(0.1), math.log1p(math.exp(-1.5)) + 0.15, 0.041212761903, 0.041212761903),
    (ipo(), 4.0, 4.0, 4.0),
    (ipo(True), 16.0, 2.0, 4.0),
    (spo(3.0), -math.exp(-1), 0.0, 0.0),
    (spo(1.5), -2 * math.exp(-2), -math.exp(-2) / 1.5, -math.exp(-2) / 1.5),
    (INPO, 6.25, -5.0, -5.0),
    (SIMPO, math.log1p(math.exp(-3.5)), 0.5 / (1 + math.exp(3.5)), 1 / (1 + math.exp(3.5))),
]


@pytest.mark.parametrize(("objective", "expected", "d_w", "d_l"), BY_HAND, ids=lambda x: getattr(x, "name", ""))
def test_by_hand(objective: Objective, expected: float, d_w: float, d_l: float) -> None:
    assert value(objective, one()) == pytest.approx(expected, abs=1e-12)
    found = [d.item() for d in objective.incentives(one())]
    assert found == pytest.approx([d_w, d_l], abs=1e-12)


@pytest.mark.parametrize("objective", ALL, ids=lambda x: x.name)
@pytest.mark.parametrize("labels", ["certain", "gated"])
def test_incentives_are_the_gradient(objective: Objective, labels: str) -> None:
    scores = many()
    if labels == "certain":
        scores = replace(scores, label=torch.ones_like(scores.label))
    z_w, z_l = (z.clone().requires_grad_() for z in (scores.z_w, scores.z_l))
    objective.loss(replace(scores, z_w=z_w, z_l=z_l)).sum().backward()
    d_w, d_l = objective.incentives(scores)
    assert z_w.grad is not None
    torch.testing.assert_close(d_w, -z_w.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(d_l, z_l.grad, rtol=1e-10, atol=1e-12)
    assert d_w.isfinite().all() and d_w.abs().min() > 0


def test_scaled_sppo_is_the_published_one() -> None:
    """trainer.py of the official code: loss = (h_w - eta (p_w - 1/2))^2 and so on, their mean, eta = 1/beta = 1000."""
    scores, eta = many(), 1000.0
    (h_w, h_l), p_w, p_l = scores.h, scores.p_w, scores.p_l
    published = 0.5 * ((h_w - eta * (p_w - 0.5)) ** 2 + (h_l - eta * (p_l - 0.5)) ** 2)
    ours = sppo(beta=1 / eta).scale * sppo(beta=1 / eta).loss(scores)
    torch.testing.assert_close(ours, published, rtol=1e-12, atol=0)
    d_w, d_l = (sppo(beta=1 / eta).scale * d for d in sppo(beta=1 / eta).incentives(scores))
    torch.testing.assert_close(d_w, eta * (p_w - 0.5) - h_w, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(d_l, h_l - eta * (p_l - 0.5), rtol=1e-11, atol=1e-9)


def test_loss_scales() -> None:
    assert sppo(beta=0.1).scale == pytest.approx(100) and sppo(scale=3.0).scale == 3.0
    assert {objective.scale for objective in ALL if not isinstance(objective, Sppo)} == {1.0}


def test_single_and_hard_are_sppo_with_other_targets() -> None:
    scores = many()
    for name, p_w in (("sppo_single", scores.p_wl), ("sppo_hard", scores.label)):
        assert torch.equal(sppo(name).loss(scores), sppo().loss(replace(scores, p_w=p_w, p_l=1 - p_w)))


def m_of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_spo_is_least_at_alpha_and_lets_go_beyond() -> None:
    alpha = 4.0
    grid = torch.linspace(-20, 60, 8001, dtype=torch.float64)
    values, pulls = spo(alpha).of_margin(grid)
    assert grid[values.argmin()].item() == pytest.approx(alpha, abs=1e-9)
    assert values.min().item() == pytest.approx(-math.exp(-1), abs=1e-15)
    assert (pulls[grid < alpha - 1e-9] > 0).all() and (pulls[grid > alpha + 1e-9] < 0).all()
    assert abs(spo(alpha).of_margin(m_of(50 * alpha))[1].item()) < 1e-18


def test_spo_far_below_is_linear_not_clamped_and_not_exploding() -> None:
    alpha = 0.5
    m = m_of(-10 * alpha).requires_grad_()
    found, _ = spo(alpha).of_margin(m)
    found.sum().backward()
    assert found.item() == pytest.approx(math.e + 2 * math.e * 9, abs=1e-12)  # f(-1) = e, f'(-1) = -2e
    assert m.grad is not None and m.grad.item() == pytest.approx(-2 * math.e / alpha, abs=1e-12)
    below, above = spo(1.0).of_margin(m_of(-1 - 1e-9, -1 + 1e-9))[0]
    assert (below - above).item() == pytest.approx(4e-9 * math.e, rel=1e-3)
    extreme = many(spread=1e4)
    assert all(spo(0.3).loss(extreme).isfinite()) and all(spo(0.3).incentives(extreme)[0].isfinite())


def test_kappa_holds_the_rejected_response_down() -> None:
    risen = one(z_l=-4.5)  # h_l = 0.5
    assert value(spo(3.0, 0.7), risen) - value(spo(3.0), risen) == pytest.approx(0.35, abs=1e-12)
    assert value(spo(3.0, 0.7), one()) == value(spo(3.0), one())  # h_l = -1


def test_inpo_without_penalty_is_ipo() -> None:
    free = Inpo(name="inpo", tau=0.0, inpo_eta=0.1, loss_scale=None)
    torch.testing.assert_close(free.loss(many()), ipo().loss(many()), rtol=1e-12, atol=1e-12)
    tied = Inpo(name="inpo", tau=0.1, inpo_eta=0.1, loss_scale=None)
    swapped = replace(many(), ref_w=many().base_w, ref_l=many().base_l)
    torch.testing.assert_close(tied.loss(many()), ipo().loss(swapped), rtol=1e-12, atol=1e-12)


READ = {
    "sppo": {"z_w", "z_l", "ref_w", "ref_l", "p_w", "p_l"},
    "sppo_single": {"z_w", "z_l", "ref_w", "ref_l", "p_wl"},
    "sppo_hard": {"z_w", "z_l", "ref_w", "ref_l", "label"},
    "dpo": {"z_w", "z_l", "ref_w", "ref_l", "label"},
    "ipo": {"z_w", "z_l", "ref_w", "ref_l", "n_w", "n_l", "label"},
    "spo": {"z_w", "z_l", "ref_w", "ref_l", "label"},
    "inpo": {"z_w", "z_l", "ref_w", "ref_l", "base_w", "base_l", "label"},
    "simpo": {"z_w", "z_l", "n_w", "n_l", "label"},
}


@pytest.mark.parametrize("objective", ALL, ids=lambda x: x.name)
def test_what_is_not_read_may_be_missing(objective: Objective) -> None:
    missing = {f.name: torch.full((60,), math.nan) for f in fields(Scores) if f.name not in READ[objective.name]}
    part = replace(many(), **missing)
    assert torch.equal(objective.loss(part), objective.loss(many()))
    assert torch.equal(objective.incentives(part)[1], objective.incentives(many())[1])


HARD = [objective for objective in ALL if not isinstance(objective, Sppo) and not getattr(objective, "kappa", 0)]


def mirrored(scores: Scores) -> Scores:
    """Chosen and rejected exchanged."""
    pairs = {name: name[:-1] + {"w": "l", "l": "w"}[name[-1]] for name in PAIR if name[-2:] in ("_w", "_l")}
    return replace(scores, **{name: getattr(scores, other) for name, other in pairs.items()})


@pytest.mark.parametrize("objective", HARD, ids=lambda x: x.name)
def test_a_gated_label_is_the_mean_over_labels(objective: Objective) -> None:
    certain = replace(many(), label=torch.ones(60, dtype=torch.float64))
    q = many().label
    expected = q * objective.loss(certain) + (1 - q) * objective.loss(mirrored(certain))
    torch.testing.assert_close(objective.loss(many()), expected, rtol=1e-12, atol=1e-12)
    even = replace(many(), label=torch.full((60,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(objective.loss(even), objective.loss(mirrored(even)), rtol=1e-12, atol=1e-12)


def test_a_gated_label_moves_the_minimum_of_ipo() -> None:
    """IPO's own target is (P - 1/2)/tau; with q for P that is (2q - 1)/(2 tau): at q = 0.8 and tau = 0.1, 3."""
    assert [d.item() for d in ipo().incentives(one(label=0.8))] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_a_closed_gate_changes_no_bit() -> None:
    certain = replace(many(), label=torch.ones(60, dtype=torch.float64))
    assert torch.equal(dpo().loss(certain), dpo().of_margin(dpo().margin(certain))[0])


def gauge(objective: Objective, scores: Scores) -> float:
    moved, norm = objective.saturation(scores)
    return (moved / norm).item()


def test_saturation_is_one_where_sppo_is_least() -> None:
    scores = many()
    for part, expected in ((1.0, 1.0), (0.5, 0.5), (0.0, 0.0)):
        z_w, z_l = scores.ref_w + part * 20 * (scores.p_w - 0.5), scores.ref_l + part * 20 * (scores.p_l - 0.5)
        there = replace(scores, z_w=z_w, z_l=z_l)
        assert gauge(sppo(beta=1 / 20), there) == pytest.approx(expected, abs=1e-12)
    at_best = replace(scores, z_w=scores.ref_w + 20 * (scores.p_w - 0.5), z_l=scores.ref_l + 20 * (scores.p_l - 0.5))
    assert sppo(beta=1 / 20).loss(at_best).max().item() < 1e-24


@pytest.mark.parametrize("objective", [ipo(), ipo(True), spo(3.0), INPO], ids=lambda x: x.name)
def test_saturation_of_a_margin_is_one_where_the_loss_is_least(objective: MarginObjective) -> None:
    assert objective.minimum is not None
    certain = replace(many(), label=torch.ones(60, dtype=torch.float64))
    u = objective.margin(certain)
    per_w, _ = objective.slopes(certain)
    there = replace(certain, z_w=certain.z_w + (objective.minimum - u) / per_w)
    assert gauge(objective, there) == pytest.approx(1.0, abs=1e-12)
    assert objective.incentives(there)[0].abs().max().item() < 1e-10


def test_what_falls_for_ever_has_no_gauge() -> None:
    assert {objective.name for objective in ALL if not objective.has_target} == {"dpo", "simpo"}
