"""Keys that are passed on to DeepSpeed: which are taken, what is hashed, and that DeepSpeed has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparring.pipeline.config import load
from sparring.stages.errors import ConfigError
from sparring.stages.fields import identity
from sparring.stages.step import Workers
from sparring.stages.train.deepspeed_keys import SECTIONS, _zero_keys, merged
from sparring.stages.train.trainer.arguments import arguments
from tests.refusals import refused
from tests.stages.train.rig import settings

WRONG: dict[str, tuple[str, ...]] = {
    "gradient_clipping=2": ("trainer.deepspeed.gradient_clipping", "trainer.max_grad_norm"),
    "bf16.enabled=true": ("trainer.deepspeed.bf16", "trainer.dtype"),
    "zero_optimization.stage=2": ("trainer.deepspeed.zero_optimization.stage", "ZeRO-3"),
    "zero_optimization.offload_param.device=cpu": (
        "trainer.deepspeed.zero_optimization.offload_param",
        "hardware.offload",
    ),
    "zero_optimization.overlap_com=true": ("trainer.deepspeed.zero_optimization.overlap_com", "overlap_comm?"),
    "zero_optimization=3": ("trainer.deepspeed.zero_optimization=3", "KEY=VALUE"),
    "steps_per_print=3": ("trainer.deepspeed.steps_per_print", "wall_clock_breakdown"),
}


@pytest.mark.parametrize("word", WRONG)
def test_what_is_not_passed_on_is_refused_with_the_key_to_use(word: str) -> None:
    with refused(ConfigError, *WRONG[word]):
        load(["hardware=cpu", f"+trainer.deepspeed.{word}"])


def test_a_key_goes_over_ours_and_deepspeed_takes_it(tmp_path: Path) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    passed = {
        "zero_optimization": {"overlap_comm": True, "stage3_max_live_parameters": 7},
        "wall_clock_breakdown": True,
    }
    made: Any = arguments(settings(deepspeed=passed), Workers(), 8, tmp_path).deepspeed
    zero = DeepSpeedZeroConfig(**made["zero_optimization"])
    assert (zero.overlap_comm, zero.max_live_parameters, zero.stage) == (True, 7, 3)
    assert zero.sub_group_size == 20_000_000 and made["wall_clock_breakdown"] is True
    fields = {
        *DeepSpeedZeroConfig.model_fields,
        *(f.alias for f in DeepSpeedZeroConfig.model_fields.values() if f.alias),
    }
    assert {*_zero_keys()} == fields


def test_only_what_changes_results_is_hashed() -> None:
    plain = identity(settings())
    assert "deepspeed" not in plain["trainer"]
    assert identity(settings(deepspeed={"zero_optimization": {"overlap_comm": True}})) == plain
    lossy = {"zero_optimization": {"zero_quantized_weights": True, "overlap_comm": True}}
    assert identity(settings(deepspeed=lossy))["trainer"]["deepspeed"] == {
        "zero_optimization": {"zero_quantized_weights": True}
    }
    assert identity(settings(deepspeed={"communication_data_type": "fp16"})) != plain
    assert "schedule" not in plain["trainer"] and identity(settings(schedule="cosine")) != plain


def test_sections_are_merged_key_by_key() -> None:
    assert merged({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}, "c": 6}) == {"a": {"x": 1, "y": 5}, "b": 3, "c": 6}
    assert "optimizer" not in SECTIONS
