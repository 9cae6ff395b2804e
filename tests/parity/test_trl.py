"""Our losses against TRL's own on the same tokens, value and gradient.

sppo_hard: TRL's is the sum of the two squares, ours half of it. dpo, ipo with length_normalize, simpo: the same. ipo of
sums: against the formula of SPPO's fork, which TRL no longer has.
"""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from trl.experimental.cpo import CPOConfig, CPOTrainer

from sparring.stages.train.batch.collate import collate
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.loss.loss import pair_losses
from sparring.stages.train.model.forward import bind, forward
from sparring.stages.train.objectives.base import Objective
from sparring.stages.train.objectives.dpo import Dpo
from sparring.stages.train.objectives.ipo import Ipo
from sparring.stages.train.objectives.simpo import Simpo
from sparring.stages.train.objectives.sppo import Sppo
from tests.stages.train.rig import OFF
from tests.tiny import tiny_policy

Models = tuple[Path, Any, Any]
"""The policy's folder, the reference and the policy."""
Result = tuple[float, torch.Tensor]
"""A loss, and its gradient at one weight of the first layer."""
BETA = 0.01
ROWS = [
    ResponsePair(id="a", prompt=[5, 600, 7000], chosen=[11, 42000, 13, 2], rejected=[15, 2]),
    ResponsePair(id="b", prompt=[17], chosen=[18, 19], rejected=[20, 31000, 22, 23, 24, 2]),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A reference and a policy that differs from it."""
    folder = tiny_policy(tmp_path_factory.mktemp("tiny"))
    reference = AutoModelForCausalLM.from_pretrained(folder)
    policy = copy.deepcopy(reference)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return folder, reference, policy


def trl_inputs() -> dict[str, torch.Tensor]:
    """ROWS as TRL's DPOTrainer batches them: all chosen, then all rejected, padded on the right."""
    batch = collate(ROWS, (2,), "mean", 0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    responses = torch.zeros(inputs["input_ids"].numel(), dtype=torch.long)
    responses[batch["positions"][batch["response_mask"]]] = 1
    return {**inputs, "completion_mask": responses.view_as(inputs["input_ids"])}


def settings(output: Path) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
    }


TEXTS = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])


def dpo_trainer_loss(models: Models, output: Path, loss_type: str, beta: float) -> Result:
    """What TRL's DPOTrainer makes of ROWS."""
    folder, reference, policy = (models[0], *map(copy.deepcopy, models[1:]))
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(**settings(output), loss_type=[loss_type], beta=beta),
        train_dataset=TEXTS,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    loss = trainer._compute_loss(trainer.model, trl_inputs(), False)
    loss.backward()
    return loss.item(), trainer.model.model.layers[0].mlp.up_proj.weight.grad


def cpo_trainer_loss(models: Models, output: Path, beta: float, gamma: float) -> Result:
    """What TRL's CPOTrainer makes of ROWS with loss_type=simpo and no likelihood term."""
    folder, policy = models[0], copy.deepcopy(models[2])
    trainer = CPOTrainer(
        model=policy,
        args=CPOConfig(**settings(output), loss_type="simpo", cpo_alpha=0.0, beta=beta, simpo_gamma=gamma),
        train_dataset=TEXTS,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    inputs = trl_inputs()
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    named = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}
    sides = [dict(zip(("chosen", "rejected"), tensor.chunk(2), strict=True)) for tensor in named.values()]
    batch = {f"{side}_{name}": parts[side] for name, parts in zip(named, sides, strict=True) for side in parts}
    loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    loss.backward()
    return loss.item(), trainer.model.model.layers[0].mlp.up_proj.weight.grad


def our_loss(models: Models, objective: Objective) -> Result:
    reference, policy = map(copy.deepcopy, models[1:])
    batch = collate(ROWS, (2,), "mean", 99)
    with torch.no_grad():
        z_ref, _ = forward(bind(reference, "float32"), batch)
    z, states = forward(bind(policy, "float32"), batch)
    batch |= dict(zip(("ref_w", "ref_l"), z_ref.chunk(2), strict=True))
    loss, _ = pair_losses(z, states, batch, objective, OFF)
    loss = loss.mean()
    loss.backward()
    return loss.item(), policy.model.layers[0].mlp.up_proj.weight.grad


def assert_same(theirs: Result, ours: Result, factor: float) -> None:
    """Theirs is `factor` times ours, in value and gradient, to fp32's rounding."""
    assert theirs[0] == pytest.approx(factor * ours[0], rel=1e-5)
    assert ours[1].abs().max() > 0
    atol = 1e-4 * min(1.0, theirs[1].abs().max().item())
    torch.testing.assert_close(theirs[1], factor * ours[1], rtol=1e-3, atol=atol)


def test_sppo_hard_is_twice_ours(models: Models, tmp_path: Path) -> None:
    theirs = dpo_trainer_loss(models, tmp_path, "sppo_hard", BETA)
    ours = our_loss(models, Sppo(name="sppo_hard", beta=BETA, loss_scale=None))
    assert ours[0] != pytest.approx(0.25 / BETA**2, rel=1e-4)  # h is not zero
    assert_same(theirs, ours, 2.0)


def test_dpo_is_ours(models: Models, tmp_path: Path) -> None:
    theirs = dpo_trainer_loss(models, tmp_path, "sigmoid", 0.1)
    ours = our_loss(models, Dpo(name="dpo", beta=0.1, label_smoothing=0.0, loss_scale=None))
    assert ours[0] != pytest.approx(math.log(2), rel=1e-4)
    assert_same(theirs, ours, 1.0)


def test_ipo_of_length_means_is_ours(models: Models, tmp_path: Path) -> None:
    theirs = dpo_trainer_loss(models, tmp_path, "ipo", 0.1)
    ours = our_loss(models, Ipo(name="ipo", tau=0.1, length_normalize=True, loss_scale=None))
    assert ours[0] != pytest.approx(25.0, rel=1e-4)
    assert_same(theirs, ours, 1.0)


def test_ipo_of_sums_is_the_formula_of_sppos_fork(models: Models) -> None:
    """losses = (logits - 1 / (2 * beta)) ** 2, logits = (z_w - z_l) - (ref_w - ref_l) of summed log-probs."""
    reference, policy = (copy.deepcopy(model) for model in models[1:])
    inputs, losses = trl_inputs(), []
    for model in (policy, reference):
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        of_tokens = torch.log_softmax(logits, -1).gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
        z_w, z_l = (of_tokens * inputs["completion_mask"][:, 1:]).sum(1).chunk(2)
        losses.append(z_w - z_l)
    loss = ((losses[0] - losses[1].detach() - 1 / (2 * 0.1)) ** 2).mean()
    loss.backward()
    ours = our_loss(models, Ipo(name="ipo", tau=0.1, length_normalize=False, loss_scale=None))
    assert_same((loss.item(), policy.model.layers[0].mlp.up_proj.weight.grad), ours, 1.0)


def test_simpo_is_ours(models: Models, tmp_path: Path) -> None:
    theirs = cpo_trainer_loss(models, tmp_path, beta=2.0, gamma=1.0)
    ours = our_loss(models, Simpo(name="simpo", beta=2.0, gamma=1.0, loss_scale=None))
    assert_same(theirs, ours, 1.0)
