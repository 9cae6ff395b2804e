from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from sparring.pipeline.config import load
from sparring.stages.errors import ConfigError
from sparring.stages.step import Workers
from sparring.stages.train.config import Schedule, optimizer_steps
from sparring.stages.train.loss.loss import SUMS, pair_losses, recorded
from sparring.stages.train.objectives.sppo import Sppo
from sparring.stages.train.trainer.arguments import (
    OPTIMIZERS,
    Machine,
    arguments,
    communication,
    deepspeed_config,
    schedule,
)
from tests.refusals import refused
from tests.stages.train.rig import HINGE, OFF, settings

SPPO = Sppo(name="sppo", beta=0.1, loss_scale=None)


def test_schedule_by_hand() -> None:
    factors = [schedule(step, 8, 0.25) for step in range(8)]
    assert factors == pytest.approx([1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_other_schedules_by_hand() -> None:
    cosine = [schedule(step, 6, 1 / 3, "cosine") for step in range(6)]
    assert cosine == pytest.approx([1 / 2, 1, 1, (1 + 2**-0.5) / 2, 1 / 2, (1 - 2**-0.5) / 2])
    assert [schedule(step, 4, 0.5, "constant") for step in range(4)] == [1 / 2, 1, 1, 1]


@pytest.mark.parametrize("steps", [1, 8, 9, 100])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", ["linear", "cosine", "constant"])
def test_every_step_learns_and_the_peak_is_lr(steps: int, ratio: float, shape: Schedule) -> None:
    factors = [schedule(step, steps, ratio, shape) for step in range(steps)]
    assert min(factors) > 0 and max(factors) == 1.0


def optimizer_of(name: str, parameter: torch.nn.Parameter, tmp_path: Path) -> torch.optim.Optimizer:
    """What transformers builds for an optimizer's name, as in training."""
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=OPTIMIZERS[name], learning_rate=0.1, use_cpu=True)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return kind([{"params": [parameter], "weight_decay": arguments.weight_decay}], **options)


def test_rmsprop_by_hand(tmp_path: Path) -> None:
    """v = .99 v + .01 g^2; x -= lr g / (sqrt(v) + eps), from v = 0: the first step is 10 lr, whatever g is."""
    x = torch.nn.Parameter(torch.tensor([5.0, -5.0], dtype=torch.float64))
    optimizer = optimizer_of("rmsprop", x, tmp_path)
    assert (optimizer.defaults["alpha"], optimizer.defaults["eps"]) == (0.99, 1e-8)
    x.grad = torch.tensor([2.0, -0.5], dtype=torch.float64)
    optimizer.step()
    assert x.tolist() == pytest.approx([4.0, -4.0], abs=1e-6)
    x.grad = torch.tensor([2.0, 0.0], dtype=torch.float64)
    optimizer.step()
    v = 0.99 * 0.04 + 0.04
    assert x.tolist() == pytest.approx([4.0 - 0.1 * 2 / v**0.5, -4.0], abs=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_adam_by_hand(name: str, tmp_path: Path) -> None:
    """The first step is lr against the sign of g, without weight decay; in 8 bits too."""
    x = torch.nn.Parameter(torch.ones(8192))
    optimizer = optimizer_of(name, x, tmp_path)
    x.grad = torch.linspace(-1, 1, 8192)
    optimizer.step()
    torch.testing.assert_close(x.detach(), 1 - 0.1 * x.grad.sign(), rtol=0, atol=1e-4)


def test_weight_decay_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW shrinks a matrix by lr times the decay where its gradient is 0; norms and biases are left as they are."""
    monkeypatch.setattr("sparring.stages.train.trainer.arguments.deepspeed_config", lambda *_, **__: {})
    args = arguments(settings(optimizer="adamw", lr=0.1, weight_decay=0.5, warmup_ratio=0.0), Workers(), 8, tmp_path)
    model = torch.nn.ModuleDict({"matrix": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)})
    trainer = Trainer(model=model, args=args)
    optimizer = trainer.create_optimizer()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    for one in model.parameters():
        one.grad = torch.zeros_like(one)
    optimizer.step()
    left = {name: one.detach() / before[name] for name, one in model.named_parameters()}
    torch.testing.assert_close(left["matrix.weight"], torch.full((2, 2), 1 - 0.1 * 0.5))
    torch.testing.assert_close(left["norm.weight"], torch.ones(2))


def test_offload_is_told_to_deepspeed() -> None:
    offloads = ("none", "optimizer", "all")
    zero = {name: deepspeed_config(name)["zero_optimization"] for name in offloads}
    moved = {name: {key for key in made if key.startswith("offload_")} for name, made in zero.items()}
    assert moved == {"none": set(), "optimizer": {"offload_optimizer"}, "all": {"offload_optimizer", "offload_param"}}
    on_gpu = deepspeed_config("all", Machine(gpus=16, gpus_per_node=8, gpu_bytes=80 * 2**30), 4096)
    assert on_gpu["zero_optimization"]["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert on_gpu["zero_force_ds_cpu_optimizer"] is False
    assert "zero_hpz_partition_size" not in on_gpu["zero_optimization"]


def test_gpus_communicate_while_they_compute() -> None:
    node = Machine(gpus=8, gpus_per_node=8, gpu_bytes=80 * 2**30)
    bucket = 14 * 4096**2
    assert 8 * bucket > 0.02 * node.gpu_bytes  # the memory is the bound
    assert communication(node, 4096) == {
        "overlap_comm": True,
        "reduce_bucket_size": 214_748_364,
        "stage3_prefetch_bucket_size": 214_748_364,
        "stage3_max_live_parameters": 644_245_092,
    }
    assert communication(node, 1536)["reduce_bucket_size"] == 14 * 1536**2
    assert communication(node, 512)["reduce_bucket_size"] == 20_000_000
    assert communication(replace(node, gpus=16), 4096)["zero_hpz_partition_size"] == 8
    for gpus, each in ((16, 1), (12, 8), (4, 8)):  # none to share with, and nodes of unlike size
        assert "zero_hpz_partition_size" not in communication(replace(node, gpus=gpus, gpus_per_node=each), 4096)


def test_deepspeed_takes_the_keys_of_gpus_and_checkpoints_stay_readable() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = deepspeed_config("none", Machine(gpus=16, gpus_per_node=8, gpu_bytes=80 * 2**30), 4096)["zero_optimization"]
    taken = DeepSpeedZeroConfig(**zero)
    assert taken.overlap_comm and taken.zero_hpz_partition_size == 8
    assert (taken.prefetch_bucket_size, taken.reduce_bucket_size) == (214_748_364, 214_748_364)
    assert taken.sub_group_size == deepspeed_config("none")["zero_optimization"]["sub_group_size"]


def batch_of_two() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    z = torch.tensor([-3.0, -5.0, -7.0, -2.0], dtype=torch.float64, requires_grad=True)
    states = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.6, 0.8], [0.0, -1.0]], requires_grad=True)
    names = {"p_w": [0.9, 0.6], "p_l": [0.2, 0.5], "ref_w": [-4.0, -4.0], "ref_l": [-6.0, -2.0]}
    unread = {name: [math.nan, math.nan] for name in ("p_wl", "label", "base_w", "base_l")}
    batch = {name: torch.tensor(values, dtype=torch.float64) for name, values in {**names, **unread}.items()}
    return z, states, {**batch, "response_mask": torch.ones(4, 3, dtype=torch.bool)}


def test_pair_losses_by_hand() -> None:
    z, states, batch = batch_of_two()
    # eta = 10; pair 1: h = (1, -1), targets (4, -3): (9 + 4)/2; pair 2: h = (-1, 0), targets (1, 0): 4/2
    losses, sums = pair_losses(z, states, batch, SPPO, OFF)
    loss = losses.mean()
    assert loss.item() == pytest.approx((6.5 + 2.0) / 2, abs=1e-12)
    named = dict(zip(recorded(SPPO), sums.tolist(), strict=True))
    assert named["loss"] == pytest.approx(8.5, abs=1e-12)
    assert named["l_beta"] == pytest.approx(0.085, abs=1e-14)
    assert (named["h_w"], named["h_l"], named["h_w_negative"]) == pytest.approx((0.0, -1.0, 1.0), abs=1e-12)
    assert named["abs_h"] == pytest.approx(1.5, abs=1e-12)
    assert (named["moved"], named["norm"]) == pytest.approx((4 + 3 - 1, 16 + 9 + 1), abs=1e-12)
    assert named["distance"] == pytest.approx(0.8**0.5 + 2.0, abs=1e-6)


def test_repulsion_is_inside_the_scale() -> None:
    z, states, batch = batch_of_two()
    losses, _ = pair_losses(z, states, batch, SPPO, OFF)
    plain = losses.mean()
    term = replace(HINGE, weight=0.5)
    losses, sums = pair_losses(z, states, batch, SPPO, term)
    both = losses.mean()
    hinge = (1 - 0.8**0.5) ** 2  # the second pair is further apart than the margin
    assert sums[SUMS.index("l_rep")].item() == pytest.approx(hinge, abs=1e-6)
    assert (both - plain).item() == pytest.approx(100 * 0.5 * hinge / 2, abs=1e-4)


def test_sums_of_micro_batches_add_up() -> None:
    z, states, batch = batch_of_two()
    _, whole = pair_losses(z, states, batch, SPPO, HINGE)
    halves = []
    for i in range(2):
        rows = [i, i + 2]
        part = {name: column[[i]] for name, column in batch.items() if name != "response_mask"}
        part["response_mask"] = batch["response_mask"][rows]
        halves.append(pair_losses(z[rows], states[rows], part, SPPO, HINGE)[1])
    torch.testing.assert_close(halves[0] + halves[1], whole, rtol=1e-12, atol=1e-12)


def test_micro_batch_divides_the_workers_share() -> None:
    assert settings(micro_batch=4, global_batch=8).micro_pairs(workers=1) == 4
    assert settings(micro_batch=5, global_batch=8).micro_pairs(workers=1) == 4
    assert settings(micro_batch=16, global_batch=8).micro_pairs(workers=2) == 4
    assert settings(micro_batch=4, global_batch=6).micro_pairs(workers=2) == 3
    with refused(ConfigError, "trainer.global_batch=8", "hardware.workers=3"):
        settings(global_batch=8).micro_pairs(workers=3)


def test_batches_are_those_of_the_jobs_workers_whatever_the_hardware_group_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparring.stages.train.trainer.arguments.deepspeed_config", lambda *_, **__: {})
    wanted = settings(workers=1, micro_batch=2, global_batch=8)
    args = arguments(wanted, Workers(count=2), 8, tmp_path)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 2)


def test_optimizer_steps() -> None:
    assert [optimizer_steps(n, 2, 8) for n in (1, 8, 9, 64)] == [2, 2, 4, 16]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "adam"),
        ("dtype", "float16"),
        ("truncate", "keep_start"),
        ("publish_dtype", "int8"),
        ("warmup_ratio", 1.5),
        ("min_steps", 7),
    ],
)
def test_wrong_values_are_named(field: str, value: object) -> None:
    with refused(ConfigError, f"trainer.{field}={value}"):
        load(["hardware=cpu", f"trainer.{field}={value}"])


def test_wrong_choices_are_named() -> None:
    with refused(ConfigError, "repulsion.name=l2"):
        load(["hardware=cpu", "repulsion.name=l2"])
    with refused(ConfigError, "repulsion.pooling=max"):
        load(["hardware=cpu", "repulsion.pooling=max"])
    with refused(ConfigError, "trainer.dtype=half"):
        load(["hardware=cpu", "trainer.dtype=half"])
