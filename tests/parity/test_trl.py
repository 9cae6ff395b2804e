"""Our SPPO loss against TRL's `sppo_hard` on the same tokens: TRL's is the sum of the two squares, ours half of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from stages.train.collate import Row, collate
from stages.train.config import ObjectiveIdentity
from stages.train.forward import bind, forward
from stages.train.loss import pair_loss
from tests.stages.train.rig import OFF
from tests.tiny import tiny_policy

BETA = 0.01
ROWS = [
    Row(id="a", prompt=[5, 600, 7000], chosen=[11, 42000, 13, 2], rejected=[15, 2]),
    Row(id="b", prompt=[17], chosen=[18, 19], rejected=[20, 31000, 22, 23, 24, 2]),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A reference and a policy that differs from it."""
    folder = tiny_policy(tmp_path_factory.mktemp("tiny"))
    reference = AutoModelForCausalLM.from_pretrained(folder)
    policy = copy.deepcopy(reference)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return folder, reference, policy


def trl_loss(models: tuple[Path, Any, Any], output: Path) -> tuple[float, torch.Tensor]:
    folder, reference, policy = (models[0], *map(copy.deepcopy, models[1:]))
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(output),
            loss_type=["sppo_hard"],
            beta=BETA,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    batch = collate(ROWS, (2,), "mean", 0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    completion = torch.zeros(inputs["input_ids"].numel(), dtype=torch.long)
    completion[batch["positions"][batch["response_mask"]]] = 1
    inputs["completion_mask"] = completion.view_as(inputs["input_ids"])
    loss = trainer._compute_loss(trainer.model, inputs, False)
    loss.backward()
    return loss.item(), trainer.model.model.layers[0].mlp.up_proj.weight.grad


def our_loss(models: tuple[Path, Any, Any]) -> tuple[float, torch.Tensor]:
    _, reference, policy = models
    batch = collate(ROWS, (2,), "mean", 99)
    with torch.no_grad():
        z_ref, _ = forward(bind(reference, "float32"), batch)
    z, states = forward(bind(policy, "float32"), batch)
    hard = {"p_w": torch.ones(2).double(), "p_l": torch.zeros(2).double()}
    batch |= hard | dict(zip(("ref_w", "ref_l"), z_ref.chunk(2), strict=True))
    loss, _ = pair_loss(z, states, batch, ObjectiveIdentity(name="sppo", beta=BETA, loss_scale=None), OFF)
    loss.backward()
    return loss.item(), policy.model.layers[0].mlp.up_proj.weight.grad


def test_sppo_hard_is_twice_ours(models: tuple[Path, Any, Any], tmp_path: Path) -> None:
    theirs, their_gradient = trl_loss(models, tmp_path)
    ours, our_gradient = our_loss(models)
    assert ours != pytest.approx(0.25 / BETA**2, rel=1e-4)  # h is not zero
    assert theirs == pytest.approx(2 * ours, rel=1e-5)
    torch.testing.assert_close(their_gradient, 2 * our_gradient, rtol=1e-3, atol=1e-4)
