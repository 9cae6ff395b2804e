"""Rates from a data sheet, by figures worked out by hand on a GPU with round numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from sparring.pipeline.planning import roofline
from sparring.pipeline.planning.memory import Architecture
from sparring.pipeline.planning.roofline import ACCELERATORS, Accelerator
from sparring.stages import fields
from sparring.stages.hardware import ExpectConfig

GPU = Accelerator(
    flops=1e15, flops_fp32=1e14, memory_bytes=80e9, memory_bytes_per_s=1e12, link_bytes_per_s=1e11
)  # fmt: skip
MODEL = Architecture(
    weights=10**9,
    layers=10,
    hidden=1000,
    intermediate=4000,
    vocabulary=1000,
    heads=10,
    q_width=1000,
    kv_width=500,
    eager=False,
)
"""Its keys and values are 2 · 2 · 10 · 500 = 20,000 bytes a token."""


def test_a_small_batch_waits_for_the_weights_and_a_large_one_for_products() -> None:
    read_s = 100 * 1000 * 20_000 / 1e12  # keys and values
    small = roofline.decode_step_s(GPU, MODEL, batch=100, context=1000)
    assert small == pytest.approx((2e9 / 1e12 + read_s) / 0.65 + 0.003)  # 2 ms for the weights, .2 ms of products
    large = roofline.decode_step_s(GPU, MODEL, batch=2000, context=1000)
    assert large == pytest.approx((2 * 1e9 * 2000 / 1e15 + 20 * read_s) / 0.65 + 0.003)


def test_an_engine_of_two_gpus_halves_both_and_sums_twice_a_layer() -> None:
    one = roofline.decode_step_s(GPU, MODEL, 100, 1000) - 0.003
    two = roofline.decode_step_s(GPU, MODEL, 100, 1000, gpus=2) - 0.003
    message = 100 * 1000 * 2  # bf16
    assert two == pytest.approx(one / 2 + 2 * 10 * (15e-6 + message / (1e11 * 0.75)))


def test_responses_at_once_are_those_whose_keys_fit_and_1024_at_most() -> None:
    room = 80e9 * 0.9 - 4.5 * 2**30 - 2e9
    assert roofline.responses_at_once(GPU, MODEL, 10_000, 1, 0.9) == int(room / (10_000 * 20_000))
    assert roofline.responses_at_once(GPU, MODEL, 1_000, 1, 0.9) == 1024


def test_sampling_counts_a_prompt_once_for_all_of_its_responses() -> None:
    step = roofline.decode_step_s(GPU, MODEL, 1024, 300)
    prompt_s = 100 * (2e9 + 2 * 100 * 1000 * 10) / (1e15 * 0.45)
    made = roofline.sampling_tokens_per_s(GPU, MODEL, prompt=100, length=400, k=5)
    assert made == pytest.approx(2000 / (2000 / 1024 * step + prompt_s))
    assert roofline.tail_s(GPU, MODEL, 2000) == pytest.approx(2000 * roofline.decode_step_s(GPU, MODEL, 1, 1000))


def test_a_model_of_unknown_architecture_has_keys_as_llama_has() -> None:
    unknown = replace(MODEL, weights=8_030_000_000, layers=0, kv_width=0)
    assert roofline.kv_bytes(unknown) == 2 * 2 * 32 * 1024
    assert roofline.kv_bytes(replace(unknown, weights=4 * 8_030_000_000)) == 2 * 131_072


def test_pairrm_takes_a_tera_flop_for_a_pair() -> None:
    layer = 2 * 12 * 1024**2 * 1200 + 4 * 1024 * 1200**2 + 4 * 1024 * 1200 * 512
    assert roofline.pairrm_flops(1200) == 24 * layer == pytest.approx(0.93e12, rel=0.01)
    assert roofline.pairrm_pairs_per_s(GPU, 1200, "float32") == pytest.approx(1e14 * 0.52 / (24 * layer))
    assert roofline.pairrm_pairs_per_s(GPU, 1200, "bfloat16") == pytest.approx(1e15 * 0.28 / (24 * layer))


def test_a_training_token_is_three_forward_tokens_four_with_checkpointing() -> None:
    forward = 2e9 + 2 * 500 * 1000 * 10
    assert roofline.scoring_tokens_per_s(GPU, MODEL, 500) == pytest.approx(1e15 * 0.45 / forward)
    assert roofline.training_tokens_per_s(GPU, MODEL, 500, False) == pytest.approx(1e15 * 0.5 / (3 * forward))
    assert roofline.training_tokens_per_s(GPU, MODEL, 500, True) == pytest.approx(1e15 * 0.5 / (4 * forward))


def test_zero3_moves_eight_bytes_a_weight_of_what_others_hold() -> None:
    assert roofline.zero3_s(MODEL, 4, 1e11) == pytest.approx(0.75 * 8e9 / 7.5e10)
    assert roofline.zero3_s(MODEL, 1, 1e11) == 0


def test_loading_and_embedding() -> None:
    assert roofline.loading_s(16e9) == 8
    assert roofline.embed_responses_per_s(GPU, 500, 10**7) == pytest.approx(1e14 * 0.1 / (2 * 1e7 * 500))


def test_every_accelerator_that_can_be_named_has_a_data_sheet() -> None:
    named = next(kind for kind in get_args(fields.hints(ExpectConfig)["accelerator"]) if get_args(kind))
    assert set(get_args(named)) == set(ACCELERATORS)
