"""Objective, gate and repulsion together: every objective through the loss of a batch, and on a real policy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring.stages.train.batch.collate import COLUMNS, collate
from sparring.stages.train.batch.rows import load_rows
from sparring.stages.train.config import OffRepulsion, RepulsionConfig
from sparring.stages.train.launch.worker import load_policy
from sparring.stages.train.loss import repulsion
from sparring.stages.train.loss.loss import GAUGE, MOVES, SUMS, pair_losses, recorded, scores_of
from sparring.stages.train.model.forward import forward
from sparring.stages.train.objectives import ObjectiveConfig
from tests.stages.train.rig import (
    HINGE,
    OBJECTIVES,
    OFF,
    REPULSIONS,
    inputs_of,
    objective,
    repelling,
    train_inputs,
    train_job,
)
from tests.tiny import tiny_policy

PAIRS = 5
EVERY = pytest.mark.parametrize("name", OBJECTIVES)
TERMS = [OFF, *(replace(repelling(name), weight=0.3) for name in REPULSIONS)]


def batch(gated: bool, wanted: ObjectiveConfig) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """z, states and the columns of some pairs; the gate leaves 0.6 of every target. NaN where there is no input."""
    generator = torch.Generator().manual_seed(3)
    z = (torch.randn(2 * PAIRS, generator=generator).double() * 3 - 20).requires_grad_()
    states = torch.rand(2 * PAIRS, 4, generator=generator).requires_grad_()
    left = 0.6 if gated else 1.0
    values = {name: torch.randn(PAIRS, generator=generator).double() * 3 - 20 for name in COLUMNS}
    for name in ("p_w", "p_l", "p_wl"):
        values[name] = 0.5 + left * (torch.rand(PAIRS, generator=generator).double() - 0.5)
    values["label"] = torch.full((PAIRS,), 0.5 + left / 2, dtype=torch.float64)
    absent = [name for name, there in (("base", wanted.reads_base), ("ref", wanted.reads_reference)) if not there]
    columns = {name: torch.full_like(v, math.nan) if name[:-2] in absent else v for name, v in values.items()}
    tokens = torch.randint(1, 7, (2 * PAIRS,), generator=generator)
    return z, states, {**columns, "response_mask": torch.arange(7) < tokens[:, None]}


@EVERY
@pytest.mark.parametrize("gated", [False, True], ids=["gate off", "gate on"])
@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_gate_and_repulsion_combine_with_every_objective(name: str, gated: bool, term: RepulsionConfig) -> None:
    wanted = objective(name)
    z, states, columns = batch(gated, wanted)
    losses, sums = pair_losses(z, states, columns, wanted, term)
    total = losses.mean()
    scores, scale = scores_of(z, columns), wanted.scale
    expected = scale * wanted.loss(scores).mean()
    if not isinstance(term, OffRepulsion):
        d = repulsion.distance(*states.chunk(2)).double()
        expected = expected + scale * term.weight * repulsion.loss(term, d).mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    total.backward()
    assert z.grad is not None
    d_w, d_l = wanted.incentives(scores)
    torch.testing.assert_close(z.grad, torch.cat([-d_w, d_l]).detach() * scale / PAIRS, rtol=1e-10, atol=1e-12)
    assert (states.grad is not None and states.grad.abs().max() > 0) == (term.name != "off")
    named = dict(zip(recorded(wanted), sums.tolist(), strict=True))
    assert named["loss"] == pytest.approx(PAIRS * total.item(), rel=1e-12)
    assert all(math.isfinite(value) for value in named.values())


@EVERY
def test_the_gate_changes_every_objective(name: str) -> None:
    wanted = objective(name)
    losses = [pair_losses(*batch(gated, wanted), wanted, OFF)[0].mean().item() for gated in (False, True)]
    assert abs(losses[1] - losses[0]) > 1e-3 * abs(losses[0])


def test_only_what_is_defined_is_recorded() -> None:
    assert recorded(objective("sppo")) == recorded(objective("inpo")) == (*SUMS, *MOVES, *GAUGE)
    assert recorded(objective("dpo")) == (*SUMS, *MOVES) and recorded(objective("simpo")) == SUMS


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("inputs")
    return train_inputs(folder, tiny_policy(folder / "policy"), pairs=8)


@EVERY
def test_every_objective_trains_a_policy(name: str, inputs: list[Any], tmp_path: Path) -> None:
    """Four steps on all pairs at once: the loss falls, and the chosen responses rise over the rejected ones."""
    wanted = objective(name, loss_scale=1.0)
    job = train_job(tmp_path, inputs_of(wanted, inputs))
    rows, _ = load_rows(job)
    model = load_policy(job.inputs["policy"].folder(), job.settings)
    columns = collate(rows, (2,), "mean", model.shared_up_to)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-4)
    seen = []
    for _ in range(4):
        z, states = forward(model, columns)
        losses, _ = pair_losses(z, states, columns, wanted, HINGE)
        total = losses.mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        z_w, z_l = z.detach().chunk(2)
        seen.append((total.item(), (z_w - z_l).mean().item()))
    assert seen[-1][0] < seen[0][0] and seen[-1][1] > seen[0][1] + 0.5
