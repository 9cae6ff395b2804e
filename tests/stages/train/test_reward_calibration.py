from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sparring.pipeline.config import load
from sparring.stages.errors import ConfigError
from sparring.stages.train.batch.collate import collate
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.loss.loss import SUMS, pair_losses
from sparring.stages.train.loss.reward_calibration import RewardCalibration, calibrate, log_delta
from sparring.stages.train.model.forward import bind
from sparring.stages.train.trainer.instruments import Instruments
from tests.refusals import refused
from tests.stages.train.rig import HINGE, OBJECTIVES, OFF, REWARD, alone, objective, settings, small_llama

LOG = math.log


def test_delta_by_hand() -> None:
    # r = 6/3 = 2, r* = 4/0.5 = 8: delta = sqrt(8/2) = 2
    assert math.exp(log_delta(LOG(6), LOG(3), LOG(0.5), LOG(4), LOG(4))) == pytest.approx(2.0, abs=1e-12)
    assert math.exp(log_delta(LOG(3), LOG(6), LOG(4), LOG(0.5), LOG(4))) == pytest.approx(0.5, abs=1e-12)


def test_delta_is_bounded() -> None:
    assert log_delta(0.0, 0.0, 0.0, LOG(1e6), LOG(4)) == LOG(4)
    assert log_delta(0.0, 0.0, 0.0, LOG(1e-6), LOG(4)) == -LOG(4)


def test_values_stay_to_the_bit_and_gradients_are_scaled() -> None:
    z = torch.tensor([-3.1, -5.7, -7.3, -2.9], dtype=torch.float64, requires_grad=True)
    scaled = calibrate(z, 1.7)
    assert torch.equal(scaled, z)
    scaled.sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == pytest.approx([1.7, 1.7, 1 / 1.7, 1 / 1.7], abs=1e-15)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_objective_keeps_its_value_and_its_gradient_has_delta(name: str) -> None:
    z = torch.tensor([-30.0, -50.0, -70.0, -20.0], dtype=torch.float64, requires_grad=True)
    batch = collate(rows()[:2], (2,), "mean", 99)
    losses, sums = pair_losses(z, torch.ones(4, 3), batch, objective(name), OFF)
    plain = losses.mean()
    losses, changed_sums = pair_losses(calibrate(z, 3.0), torch.ones(4, 3), batch, objective(name), OFF)
    changed = losses.mean()
    assert plain.item() == changed.item() and torch.equal(sums, changed_sums)
    (before,) = torch.autograd.grad(plain, z)
    assert before.abs().min() > 1e-12
    (after,) = torch.autograd.grad(changed, z)
    torch.testing.assert_close(
        after, before * torch.tensor([3.0, 3.0, 1 / 3, 1 / 3], dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_with_constant_inputs_the_ratio_moves_to_the_centre_of_the_band() -> None:
    calibration = RewardCalibration(REWARD)
    assert calibration.delta == 1.0
    calibration.update(5.0, 5.0, 1.0, 1.0)  # a first step that is unlike the rest
    d_w, d_l, norm_w, norm_l = 3.0, 1.0, 2.0, 3.0
    ratios = []
    for _ in range(600):
        calibration.update(d_w, d_l, norm_w, norm_l)
        ratios.append(calibration.delta**2 * d_w / d_l)  # delta d_w over d_l / delta
    centre = norm_l / norm_w
    gaps = [abs(LOG(ratio / centre)) for ratio in ratios]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.1 and gaps[-1] < 1e-4
    # of the logs: 0.98 of the first step's, 0.02 of the second's
    assert ratios[0] == pytest.approx(math.exp(0.02 * LOG(1.5) - 0.02 * LOG(3)) * 3, rel=1e-12)


def test_constant_from_the_first_step_on_is_exact_in_the_second() -> None:
    calibration = RewardCalibration(REWARD)
    calibration.update(2.0, 1.0, 0.5, 4.0)
    assert calibration.delta == pytest.approx(2.0, abs=1e-12)


@pytest.mark.parametrize("values", [(0.0, 1.0, 1.0, 1.0), (1.0, -2.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.0)])
def test_a_step_without_logs_is_skipped_and_counted(values: tuple[float, float, float, float]) -> None:
    calibration = RewardCalibration(REWARD)
    calibration.update(2.0, 1.0, 0.5, 4.0)
    logs = dict(calibration.logs)
    calibration.update(*values)
    assert (calibration.delta, calibration.skipped, calibration.logs) == (1.0, 1, logs)
    calibration.update(2.0, 1.0, 0.5, 4.0)
    assert calibration.delta == pytest.approx(2.0) and calibration.skipped == 1


def test_state_survives_json() -> None:
    first, second = RewardCalibration(REWARD), RewardCalibration(REWARD)
    for step in range(3):
        first.update(1.3 + step, 0.7, 0.3, 1.1)
    first.update(-1.0, 1.0, 1.0, 1.0)
    second.restore(json.loads(json.dumps(first.state())))
    assert (second.delta, second.skipped) == (1.0, 1)
    for calibration in (first, second):
        calibration.update(1.1, 0.2, 0.3, 0.4)
    assert first.delta == second.delta != 1.0


def test_wrong_values_are_named() -> None:
    for field, value in (("name", "rc"), ("ema", 1.0), ("max_log_delta", 0.0)):
        with refused(ConfigError, f"calibration.{field}={value}"):
            load(["hardware=cpu", "calibration=reward", f"calibration.{field}={value}"])


def rows() -> list[ResponsePair]:
    """Four pairs of random tokens; reference and base are uniform over the 64 tokens."""
    generator = torch.Generator().manual_seed(3)

    def pair(i: int, p_w: float) -> ResponsePair:
        prompt, chosen, rejected = (
            torch.randint(3, 60, (n,), generator=generator).tolist() for n in (2 + i, 3 + i, 6 - i // 2)
        )
        logs: dict[str, Any] = {
            name: -LOG(64) * len(ids)
            for ids, end in ((chosen, "w"), (rejected, "l"))
            for name in (f"ref_{end}", f"base_{end}")
        }
        return ResponsePair(
            id=str(i), prompt=prompt, chosen=chosen, rejected=rejected, p_w=p_w, p_l=0.4, p_wl=p_w, **logs
        )

    return [pair(i, p_w) for i, p_w in enumerate((0.7, 0.8, 0.9, 0.95))]


def batched(part: list[ResponsePair], micro: int) -> list[dict[str, Any]]:
    return [collate(part[i : i + micro], (2,), "mean", 99) for i in range(0, len(part), micro)]


def figures(micro: int, rank: int = 0, workers: int = 1, name: str = "sppo") -> list[dict[str, float]]:
    """Records of three optimizer steps on one global batch of 4 pairs, real gradients and plain SGD between them."""
    model = bind(small_llama(initializer_range=0.2), "float32")
    wanted = settings(objective=objective(name), repulsion=HINGE, calibration=REWARD)
    instruments = Instruments(model, wanted)
    part = rows()[rank * 4 // workers : (rank + 1) * 4 // workers]
    found = []
    for step in range(3):
        model.zero_grad()
        parts = []
        for batch in batched(part, micro):
            z, states = instruments.forward(model, batch, step)
            losses, added = pair_losses(z, states, batch, wanted.objective, wanted.repulsion)
            loss = losses.mean()
            (loss * micro / 4).backward()
            parts.append(added)
        sums = torch.stack(parts).sum(0)
        dist.all_reduce(sums)
        means = dict(zip(SUMS, (sums / 4).tolist(), strict=False))
        found.append(instruments.record(4, means["d_w"], means["d_l"]))
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
                parameter.sub_(1e-6 * parameter.grad)
    return found


def of_rank(rank: int, store: str) -> list[dict[str, float]]:
    """One of two ranks, in a process of its own."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        return figures(1, rank, 2)
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def whole_batch() -> Iterator[list[dict[str, float]]]:
    """In a group of one rank, which the tests share."""
    with alone():
        yield figures(4)


def close(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    for left, right in zip(ours, theirs, strict=True):
        assert left["delta"] == pytest.approx(right["delta"], rel=1e-5)
        assert left == pytest.approx(right, rel=1e-4)


def test_delta_moves_and_everything_is_recorded(whole_batch: list[dict[str, float]]) -> None:
    names = {"rho", "in_band", "reversed", "rho_negative", "r_star", "incentive_ratio", "repulsion_ratio"}
    assert set(whole_batch[0]) == names | {"delta", "delta_skipped", "norm_w", "norm_l"}
    assert whole_batch[0]["delta"] == 1.0
    assert abs(whole_batch[1]["delta"] - 1) > 0.01 and whole_batch[2]["delta"] != whole_batch[1]["delta"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_measured_and_calibrated(whole_batch: list[dict[str, float]], name: str) -> None:
    """The incentives of a loss of the margin are equal: delta^2 is r* then, the ratio of the two norms."""
    first, second, _ = figures(2, name=name)
    assert set(first) == set(whole_batch[0]) and abs(second["delta"] - 1) > 1e-4
    if name in ("dpo", "ipo", "inpo"):
        assert first["incentive_ratio"] == pytest.approx(1.0, abs=1e-12)
        assert second["delta"] ** 2 == pytest.approx(first["norm_l"] / first["norm_w"], rel=1e-6)


@pytest.mark.parametrize("micro", [1, 2])
def test_the_micro_batch_does_not_change_delta(whole_batch: list[dict[str, float]], micro: int) -> None:
    close(figures(micro), whole_batch)


@pytest.mark.slow
def test_two_workers_have_the_same_delta(whole_batch: list[dict[str, float]], tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        ranks = [pool.submit(of_rank, rank, str(tmp_path / "store")) for rank in range(2)]
        for rank in ranks:
            close(rank.result(), whole_batch)
