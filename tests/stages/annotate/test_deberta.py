"""The encoder, against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model

from sparring.stages.annotate.deberta import Encoder, Shape, held_numbers, most_tokens
from sparring.stages.annotate.pairrm import BACKBONES
from sparring.stages.errors import DataError
from tests.refusals import refused
from tests.stages.annotate.blender import SIZES, randomised

VOCABULARY = 300


@pytest.fixture(scope="module")
def model() -> DebertaV2Model:
    made: DebertaV2Model = DebertaV2Model(DebertaV2Config(vocab_size=VOCABULARY, **SIZES)).eval()
    randomised(made, 2)
    return made


@pytest.fixture(scope="module")
def encoder(model: DebertaV2Model) -> Encoder:
    return Encoder(Shape.of(model.config.to_dict(), "config.json"), dict(model.state_dict()))


def check_states(model: DebertaV2Model, encoder: Encoder, lengths: list[int]) -> None:
    made = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCABULARY, (len(lengths), max(lengths)), generator=made)
    there = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        whole = model(ids, attention_mask=there.long()).last_hidden_state
    places = torch.tensor([[0, n // 2, n - 1] for n in lengths])
    found = encoder.states([row[:n].tolist() for row, n in zip(ids, lengths, strict=True)], places)
    wanted = whole.gather(1, places[..., None].expand(-1, -1, whole.shape[-1]))
    assert torch.allclose(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [[1, 2], [5, 9], [130, 129, 128], [300, 300], [900, 600, 3]])
def test_states_are_those_of_transformers(model: DebertaV2Model, encoder: Encoder, lengths: list[int]) -> None:
    """In every range of distances: own buckets, shared ones, and beyond the farthest."""
    check_states(model, encoder, lengths)


@pytest.mark.slow
def test_states_are_the_same_where_the_kernel_looks_places_up(model: DebertaV2Model) -> None:
    """As on CUDA; here the kernel is not compiled."""
    encoder = Encoder(Shape.of(model.config.to_dict(), "config.json"), dict(model.state_dict()))
    encoder.looks_up = True
    with torch.compiler.set_stance("force_eager"):
        check_states(model, encoder, [600, 300, 3])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"share_att_key": False}, ("share_att_key", "False", "True")),
        ({"position_biased_input": True}, ("position_biased_input", "True")),
        ({"conv_kernel_size": 3}, ("conv_kernel_size", "3")),
        ({"pos_att_type": ["c2p"]}, ("pos_att_type", "['c2p']")),
        ({"hidden_size": None}, ("hidden_size",)),
    ],
)
def test_variants_that_are_not_supported_say_so(changes: dict[str, Any], said: tuple[str, ...]) -> None:
    config = {k: v for k, v in {**SIZES, **changes}.items() if v is not None}
    with refused(DataError, "here: ", *said):
        Shape.of(config, "here")


def test_no_layer_waits_for_the_device(model: DebertaV2Model) -> None:
    """Tensors without data cannot be read: a layer that reads a number from the device fails."""
    weights = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    encoder = Encoder(Shape.of(model.config.to_dict(), "config.json"), weights)
    found = encoder.states([[1, 2, 3], [4]], torch.tensor([[0, 2], [0, 0]]))
    assert found.shape == (2, 2, SIZES["hidden_size"]) and found.device.type == "meta"


def test_a_pass_holds_what_the_memory_is_free_for() -> None:
    """DeBERTa-v3-large: 16 heads, 512 buckets in all, 1,024 wide, 4,096 in between."""
    large = Shape.of(BACKBONES["microsoft/deberta-v3-large"], "large")
    numbers = 6 * 1024 + 2 * 16 * 512
    assert held_numbers(large, 4096) == numbers
    assert held_numbers(large, 40_960) == 3 * 1024 + 2 * 40_960  # a feed-forward layer that holds more than attention
    assert most_tokens(10**9, 2 * numbers, large) == int(0.8 * 10**9) // (2 * numbers)
    assert most_tokens(0, 2 * numbers, large) == 1
    assert most_tokens(10**12, 2 * numbers, large) * 16 * 512 < 2**31
