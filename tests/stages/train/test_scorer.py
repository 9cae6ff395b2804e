"""A policy's scorer against the policy's own forward: what is found, what is given up, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sparring.stages.errors import DataError
from sparring.stages.train.batch.collate import collate
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.model import attention
from sparring.stages.train.model.forward import Route, forward, routes
from sparring.stages.train.model.hidden_states import Reading
from sparring.stages.train.model.scorer import (
    MOST_ROUNDING,
    TOLERANCE,
    Truth,
    _fault,
    _truth,
    bind_checked,
    load_scorer,
)
from sparring.stages.train.trainer.instruments import Instruments
from tests.refusals import refused
from tests.settings import changed
from tests.stages.train.ranks import folder, steps, train
from tests.stages.train.rig import OFF, REWARD, objective, settings, train_inputs, train_job
from tests.tiny import saved, tiny_policy

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
PACKED, PADDED, EAGER = (attention.NAME, False), ("sdpa", False), ("eager", False)
OWN = ("sdpa", True)
FOUND: dict[str, tuple[dict[str, Any], tuple[str, bool], float]] = {
    "llama": ({}, PACKED, 1.0),
    "qwen3": ({}, PACKED, 1.0),
    "gpt2": (GPT2, PACKED, 1.0),
    "gemma3_text": ({"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}, PACKED, 1.0),
    "gemma2": ({"final_logit_softcapping": 5.0, "attn_logit_softcapping": 1.0}, PACKED, 1.0),
    "granite": ({"logits_scaling": 8.0}, PACKED, 0.125),
    "granitemoe": ({"logits_scaling": 6.0, "num_local_experts": 4}, PACKED, 0.1666667),
    "cohere": ({"logit_scale": 0.0625}, PACKED, 0.0625),
    "hyperclovax": ({"logits_scaling": 3.0}, PACKED, 3.0),
    "falcon_h1": ({**MAMBA, "lm_head_multiplier": 0.5}, PADDED, 0.5),
    "stablelm": ({}, PADDED, 1.0),
    "nemotron": ({}, PADDED, 1.0),
    "recurrent_gemma": ({"lru_width": 32, "logits_soft_cap": 3.0}, OWN, 1.0),  # a cap by another name
    "modernbert-decoder": ({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}, OWN, 1.0),  # more than a head
}
"""Architecture -> its configuration, the route that is right (attention, own logits), its scale."""
ROWS = [
    ResponsePair(id="a", prompt=[5, 60, 70, 8], chosen=[11, 42, 13, 2, 9, 8, 7], rejected=[15, 2]),
    ResponsePair(id="b", prompt=[17], chosen=[18, 19], rejected=[20, 31, 22, 23, 24, 2]),
    ResponsePair(id="c", prompt=list(range(100, 120)), chosen=list(range(200, 225)), rejected=[3, 4]),
]
FACTORS = torch.tensor([1.0, -0.5, 2.0, 0.25, 0.7, -1.5])


def built(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **more})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # some architectures start from weights that hardly matter
            if weight.dim() > 1:
                weight.normal_(std=0.3)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
    return model


def own(model: Any) -> Tensor:
    """z of ROWS by the model's own forward, one sequence at a time, attending as the architecture spells it out."""
    model.set_attn_implementation("eager")
    model.get_output_embeddings().__dict__.pop("forward", None)
    found = []
    for prompt, response in [(r.prompt, r.chosen) for r in ROWS] + [(r.prompt, r.rejected) for r in ROWS]:
        logits = type(model).forward(model, input_ids=torch.tensor([prompt + response])).logits[0]
        log_probs = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        found.append(log_probs.gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(found)


def scored(model: Any) -> Tensor:
    return forward(model, collate(ROWS, (2,), "mean", model.shared_up_to, model.flat))[0]


def gradients(model: Any, z: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    (FACTORS * z).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("kind", FOUND)
def test_log_probs_and_gradients_are_those_of_the_models_own_forward(kind: str) -> None:
    more, right, scale = FOUND[kind]
    model = bind_checked(built(kind, **more), "float32")
    route: Route = model.route
    assert (route.attention, route.own_logits) == right and route.scale == scale
    assert (route.shared_up_to > 0) is (right == PACKED)
    assert bool(route.why) is (route != replace(routes(model, "float32")[0], scale=scale)) or right == EAGER
    z = scored(model)
    ours, expected = gradients(model, z), own(model)
    theirs = gradients(model, expected)
    lengths = torch.tensor([7, 2, 25, 2, 6, 2])
    assert ((z - expected).abs() / lengths).max() < 1e-4 and (expected.max() - expected.min()) > 5
    largest = max(gradient.abs().max() for gradient in theirs.values())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-4 * float(largest), msg=name)


def test_a_fallback_is_said_where_a_scorer_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="sparring.stages"):
        load_scorer(tiny_policy(tmp_path / "llama"), "float32")
        assert not caplog.messages
        load_scorer(saved(built("stablelm"), tmp_path / "stablelm"), "float32")
    (said,) = caplog.messages
    assert said.startswith("stablelm: ") and "padded rows" in said and "RuntimeError" in said


@pytest.fixture
def blind() -> Iterator[None]:
    """Packed attention in which tokens see all tokens before them, those of the other response too."""

    def all_before(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        return attention.attention(
            module, query, key, value, mask if mask is None else torch.ones_like(mask).tril(), **kwargs
        )

    AttentionInterface.register(attention.NAME, all_before)
    yield
    AttentionInterface.register(attention.NAME, attention.attention)


def test_packed_pairs_that_are_wrong_in_silence_are_found(blind: None) -> None:
    model = bind_checked(built("llama"), "float32")
    assert model.route == Route(attention="sdpa") and "off by" in model.route.why
    assert scored(model).tolist() == pytest.approx(own(model).tolist(), abs=1e-3)


class Bounded(LlamaForCausalLM):
    """Logits that no factor makes of those of the head."""

    def forward(self, **given: Any) -> Any:
        out = super().forward(**given)
        out.logits = 3 * torch.tanh(out.logits / 3)
        return out


class ScaledAndCapped(transformers.Gemma2ForCausalLM):
    """cap * tanh(0.6 * u / cap)."""

    def forward(self, **given: Any) -> Any:
        out = super().forward(**given)
        cap: Any = self.config.final_logit_softcapping
        out.logits = cap * torch.tanh(0.6 * torch.atanh(out.logits / cap))
        return out


class Grows(LlamaForCausalLM):
    """Log-probs that depend on the width of padded rows."""

    def forward(self, input_ids: Tensor, **given: Any) -> Any:
        out = super().forward(input_ids=input_ids, **given)
        out.logits = out.logits * input_ids.shape[1]
        return out


class Fails(LlamaForCausalLM):
    def forward(self, **given: Any) -> Any:
        raise RuntimeError("no kernel for this")


def of_class(kind: type[Any], config: Any = None) -> Any:
    torch.manual_seed(0)
    return kind(config or LlamaConfig(**SHAPE)).eval()


def test_a_scale_is_taken_before_the_cap() -> None:
    config = transformers.Gemma2Config(**SHAPE, final_logit_softcapping=2.0, attn_logit_softcapping=None)
    model = bind_checked(of_class(ScaledAndCapped, config), "float32")
    assert model.route.scale == pytest.approx(0.6, rel=1e-5) and not model.route.own_logits
    assert scored(model).tolist() == pytest.approx(own(model).tolist(), abs=1e-3)


@pytest.mark.parametrize("layer", [-1, 0])
def test_states_and_their_gradients_where_all_logits_are_taken(layer: int) -> None:
    """Those of the repulsion are as of a model whose head is all there is; those of the log-probs are its own."""
    plain, model = bind_checked(of_class(LlamaForCausalLM), "float32"), bind_checked(of_class(Bounded), "float32")
    assert model.route.own_logits and "all logits" in model.route.why
    assert scored(model).tolist() == pytest.approx(own(model).tolist(), abs=1e-3)
    model, found = bind_checked(model, "float32"), list[Any]()
    for one in (plain, model):
        reading = Reading(one, layer)
        z, states = forward(one, collate(ROWS, (2,), "mean", one.shared_up_to), reading)
        (z.sum() + states.square().sum()).backward()
        found.append((states.detach(), reading.gradients))
    (expected, theirs), (states, ours) = found
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-3)
    assert (ours[0] - theirs[0]).abs().max() > 1e-2  # of the bounded logits


def test_what_is_measured_on_a_plain_head_is_not_where_there_is_none() -> None:
    model = bind_checked(of_class(Bounded), "float32")
    instruments = Instruments(model, settings(repulsion=OFF))
    instruments.forward(model, collate(ROWS, (2,), "mean", model.shared_up_to), 0)
    assert instruments.band is None
    with refused(DataError, "calibration=off"):
        Instruments(model, settings(repulsion=OFF, calibration=REWARD))


@pytest.mark.parametrize("kind", [Grows, Fails])
def test_a_model_that_cannot_be_scored_is_refused_by_name(kind: type[Any]) -> None:
    with refused(DataError, "llama: "):
        bind_checked(of_class(kind), "float32")


def test_what_rounding_makes_of_a_model_is_no_fault() -> None:
    model = of_class(LlamaForCausalLM)
    with torch.no_grad():
        truth = _truth(model)
        assert truth.rounding < TOLERANCE
        lengths = torch.tensor([len(row.chosen) for row in truth.rows] + [len(row.rejected) for row in truth.rows])

        def fault(off: float, rounding: float) -> str:
            moved = Truth(rows=truth.rows, z=truth.z + off * lengths, rounding=rounding, scale=1.0)
            return _fault(model, routes(model, "float32")[0], "float32", moved)

        assert not fault(0.5 * TOLERANCE, 0.0) and fault(2 * TOLERANCE, 0.0)
        assert not fault(2 * TOLERANCE, TOLERANCE) and fault(2 * MOST_ROUNDING, 1.0)


def test_a_window_shorter_than_the_check_is_not_packed() -> None:
    """What was not checked is not taken."""
    config = transformers.MistralConfig(**SHAPE, sliding_window=6)
    model = bind_checked(of_class(transformers.MistralForCausalLM, config), "float32")
    assert model.shared_up_to == 0 and not model.route.why
    assert scored(model).tolist() == pytest.approx(own(model).tolist(), abs=1e-3)


def test_bfloat16_is_checked_in_float32() -> None:
    model = bind_checked(built("llama"), "bfloat16")
    assert model.scoring_dtype == torch.bfloat16 and model.route.attention == attention.NAME
    assert 1e-3 < (scored(model) - own(model)).abs().max() < 5


def policy(kind: str, where: Path) -> Path:
    """A policy of SmolLM2's vocabulary whose log-probs differ by about a nat, as `tiny_policy`'s."""
    more, _, _ = FOUND[kind]
    shape = {
        "vocab_size": 49152,
        "hidden_size": 64,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **more, **shape, "head_dim": 16, "max_position_embeddings": 2048})
    return saved(AutoModelForCausalLM.from_config(config), where)


def trained(where: Path, kind: str, **how: Any) -> tuple[dict[str, Any], str]:
    """Train through the real step; return what it made, and what rank 0 said."""
    start = policy(kind, where / "policy")
    wanted = settings(objective=objective("dpo"), lr=1e-3)
    (made,) = train(train_job(where, train_inputs(where / "inputs", start), changed(wanted, **how)))
    return made, (where / "scratch" / "train.first" / "rank-0.jsonl").read_text()


@pytest.mark.parametrize("kind", ["granite", pytest.param("stablelm", marks=pytest.mark.slow)])
def test_training_starts_at_the_reference_and_learns(kind: str, tmp_path: Path) -> None:
    made, said = trained(tmp_path, kind)
    summary, records = made["summary"], steps(made)
    assert summary["noise"] < 1e-3 and abs(records[0]["h_w"]) < 1e-3
    assert summary["probe_h_w"] - summary["probe_h_l"] > 0.05
    assert ("padded rows" in said) is (kind == "stablelm")
    again = load_scorer(folder(made), "float32")
    assert (again.route.scale, again.route.shared_up_to > 0) == ((0.125, True) if kind == "granite" else (1.0, False))


@pytest.mark.slow
def test_two_workers_take_the_same_route(tmp_path: Path) -> None:
    one, _ = trained(tmp_path / "one", "stablelm")
    two, said = trained(tmp_path / "two", "stablelm", workers=2)
    assert "padded rows" in said
    for ours, theirs in zip(steps(two), steps(one), strict=True):
        for name in ("loss", "h_w", "h_l", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-3), name
