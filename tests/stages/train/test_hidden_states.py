from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from sparring.stages.errors import ConfigError
from sparring.stages.train.batch.collate import collate
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.loss.loss import SUMS, pair_losses
from sparring.stages.train.loss.repulsion import distance, loss
from sparring.stages.train.model.forward import bind, forward, pool
from sparring.stages.train.model.hidden_states import Reading, decoder_layers
from sparring.stages.train.objectives.sppo import Sppo
from sparring.stages.train.trainer.instruments import Instruments
from tests.refusals import refused
from tests.stages.train.rig import HINGE, OFF, REPULSIONS, REWARD, alone, repelling, settings, small_llama

ROWS = [
    ResponsePair(id="a", prompt=[5, 6], chosen=[7, 8, 9, 2], rejected=[10, 11, 2], p_w=0.9, p_l=0.3),
    ResponsePair(id="b", prompt=[12], chosen=[13, 14], rejected=[15, 16, 17, 18, 2], p_w=0.8, p_l=0.2),
]
LAYERS = 3
PLACES = {-1: 3, 0: 1, 1: 2, 2: 3, -2: 2, -3: 1}
"""repulsion.layer -> how many of the three layers lie at or below it."""


def checkpointed() -> Any:
    model = small_llama(num_hidden_layers=LAYERS)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return bind(model.train(), "float32")


def repel(states: Tensor, name: str) -> Tensor:
    return loss(repelling(name, 2.0), distance(*states.chunk(2))).mean()


def per_layer(model: LlamaForCausalLM, of: Any) -> list[float]:
    """Largest gradient of each layer's weights."""
    return [
        max(of(p).abs().max().item() for n, p in layer.named_parameters() if "norm" not in n)
        for layer in model.model.layers
    ]


def gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros(1) if parameter.grad is None else parameter.grad


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("name", REPULSIONS)
@pytest.mark.parametrize("layer", PLACES)
def test_gradient_reaches_the_layers_at_and_below_under_gradient_checkpointing(
    name: str, pooling: str, layer: int
) -> None:
    model = checkpointed()
    passes = []
    model.model.embed_tokens.register_forward_hook(lambda *_: passes.append(1))
    _, states = forward(model, collate(ROWS, (2,), pooling, model.shared_up_to), Reading(model, layer))
    repel(states, name).backward()
    found = per_layer(model, gradient)
    below = PLACES[layer]
    assert min(found[:below]) > 1e-7 and found[below:] == [0.0] * (LAYERS - below)
    assert len(passes) == 1


@pytest.mark.parametrize("layer", [0, 1, -2])
def test_states_are_those_of_the_models_own_forward(layer: int) -> None:
    model: Any = bind(small_llama(num_hidden_layers=LAYERS).eval(), "float32")
    batch = collate(ROWS, (2,), "mean", 0)
    with torch.no_grad():
        z, states = forward(model, batch, Reading(model, layer))
        plain_z, last = forward(model, batch)
        all_states = model.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states
    behind = all_states[1 + layer % LAYERS].flatten(0, 1)
    torch.testing.assert_close(states, pool(behind[batch["positions"]], batch["pool_weights"]), rtol=0, atol=1e-6)
    assert torch.equal(z, plain_z) and (states - last).abs().max() > 0.1


@pytest.mark.parametrize("layer", [3, -4, 7])
def test_a_layer_that_is_not_there_is_named(layer: int) -> None:
    with refused(ConfigError, f"repulsion.layer={layer}", "3", "0 to 2"):
        Reading(small_llama(num_hidden_layers=LAYERS), layer)


def test_layers_of_other_families() -> None:
    for family in ("gpt2", "gpt_neox", "mamba", "gemma2", "phi3"):
        config = AutoConfig.for_model(family, vocab_size=64, hidden_size=32, num_hidden_layers=5, intermediate_size=48,
                                      num_attention_heads=2, num_key_value_heads=1, pad_token_id=0)  # fmt: skip
        assert len(decoder_layers(AutoModelForCausalLM.from_config(config))) == 5


def test_distance_grows_at_an_inner_layer_under_the_term_alone() -> None:
    model = checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    distances = []
    for _ in range(5):
        _, states = forward(model, collate(ROWS, (2,), "mean", 99), Reading(model, 1))
        distances.append(distance(*states.detach().chunk(2)).mean().item())
        optimizer.zero_grad()
        repel(states, "hinge").backward()
        optimizer.step()
    assert distances == sorted(distances) and distances[-1] > distances[0] + 1e-3


def test_norms_by_hand() -> None:
    reading = Reading(small_llama(num_hidden_layers=LAYERS), -1)
    for _ in range(2):
        onward, states = reading.through(lambda: torch.ones(1, 3, 4, requires_grad=True) * 1.0)
        # 2 at each of 3 tokens; 3 and 4 at one token's entry each, and 3 and -3 at two tokens' third: twice
        cancels = 3 * states[0, 0, 2] - 3 * states[0, 1, 2]
        (2 * onward.sum() + 3 * states[0, 0, 0] + 4 * states[0, 2, 1] + cancels).backward()
    assert reading.gradients is not None
    assert reading.gradients.tolist() == [[12.0] * 4, [6.0, 8.0, 0.0, 0.0]]


@pytest.mark.parametrize("layer", [-1, 1])
def test_the_ratio_is_that_of_two_backward_passes(layer: int) -> None:
    """The gradients of L_beta and of lambda L_rep, each alone, of a bias added to the states that are read."""
    objective = Sppo(name="sppo", beta=0.1, loss_scale=7.0)
    batch = collate(ROWS, (2,), "mean", 99)
    norms = []
    for part in ("L_beta", "L_rep"):
        model, bias = checkpointed(), torch.zeros(32, requires_grad=True)
        place = model.model.norm if layer == -1 else model.model.layers[layer]
        place.register_forward_hook(lambda _m, _i, out, bias=bias: out + bias)
        z, states = forward(model, batch, Reading(model, layer))
        loss = pair_losses(z, states, batch, objective, OFF)[0].mean() if part == "L_beta" else 7 * 0.5 * hinge(states)
        loss.backward()
        assert bias.grad is not None
        norms.append(bias.grad.norm().item())
    model = checkpointed()
    reading = Reading(model, layer)
    z, states = forward(model, batch, reading)
    pair_losses(z, states, batch, objective, replace(HINGE, weight=0.5))[0].mean().backward()
    assert reading.gradients is not None
    assert reading.gradients.norm(dim=1).tolist() == pytest.approx(norms, rel=1e-4)


def hinge(states: Tensor) -> Tensor:
    return loss(HINGE, distance(*states.chunk(2)).double()).mean()


def under_zero3() -> dict[str, Any]:
    """Of a real DeepSpeed engine: largest gradients per layer for each place, one step's record, in its own process."""
    import torch.distributed as dist

    from sparring.stages.step import Workers
    from sparring.stages.train.launch.worker import prepare_process

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    prepare_process(Workers())
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    model = checkpointed()
    settings = {
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "train_batch_size": 2,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    found: dict[str, Any] = {"sharded": model.lm_head.weight.numel() == 0}
    batch = collate(ROWS, (2,), "mean", 99)
    for layer in PLACES:
        z, states = forward(engine, batch, Reading(model, layer))
        engine.backward((repel(states, "hinge") + 0 * z.sum()).float())
        found[str(layer)] = per_layer(model, safe_get_full_grad)
        engine.step()
    found["record"] = one_step(engine, model, engine.backward)
    return found


def one_step(engine: nn.Module, model: Any, backward: Any) -> dict[str, float]:
    """What the instruments record of one step, at an inner layer."""
    wanted = settings(calibration=REWARD, repulsion=replace(HINGE, layer=1))
    instruments = Instruments(model, wanted)
    batch = collate(ROWS, (2,), "mean", 99)
    z, states = instruments.forward(engine, batch, 0)
    losses, sums = pair_losses(z, states, batch, wanted.objective, wanted.repulsion)
    loss = losses.mean()
    backward(loss.float())
    d_w, d_l = (sums[SUMS.index(name)].item() / 2 for name in ("d_w", "d_l"))
    return instruments.record(2, d_w, d_l)


def test_under_zero3() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(under_zero3).result()
    assert found["sharded"]
    for layer, below in PLACES.items():
        grads = found[str(layer)]
        assert min(grads[:below]) > 1e-7 and grads[below:] == [0.0] * (LAYERS - below), layer
    model = checkpointed()
    with alone():
        assert found["record"] == pytest.approx(one_step(model, model, lambda loss: loss.backward()), rel=1e-4)
