from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from sparring.stages.train.batch.collate import collate
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.model.forward import bind, forward, shared_up_to
from tests.tiny import tiny_policy

ROWS = [
    ResponsePair(id="a", prompt=[5, 600, 7000], chosen=[11, 42000, 13, 2], rejected=[15, 2]),
    ResponsePair(id="b", prompt=[17], chosen=[18, 19], rejected=[20, 31000, 22, 23, 24, 2]),
]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder = tiny_policy(tmp_path_factory.mktemp("tiny"), tied=request.param)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


SHARED, APART = 10_000, 0
LAYOUTS = pytest.mark.parametrize("layout", [SHARED, APART], ids=["shared prompt", "two sequences"])


def naive(model: nn.Module, prompt: list[int], response: list[int]) -> float:
    """Full logits of one unpadded sequence, log_softmax, sum over the response."""
    ids = torch.tensor([prompt + response])
    log_probs = torch.log_softmax(type(model).forward(model, input_ids=ids).logits.double(), dim=-1)[0]
    positions = range(len(prompt), ids.shape[1])
    return sum(log_probs[t - 1, ids[0, t]].item() for t in positions)


def sequences(rows: list[ResponsePair]) -> list[tuple[list[int], list[int]]]:
    return [(r.prompt, r.chosen) for r in rows] + [(r.prompt, r.rejected) for r in rows]


@LAYOUTS
def test_equals_full_logits(model: nn.Module, layout: int) -> None:
    with torch.no_grad():
        z, _ = forward(bind(model, "float32"), collate(ROWS, (2,), "mean", layout))
        expected = [naive(model, *sequence) for sequence in sequences(ROWS)]
    assert z.dtype == torch.float64
    assert z.tolist() == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 5  # not all equal


@LAYOUTS
def test_padding_and_company_do_not_matter(model: nn.Module, layout: int) -> None:
    bind(model, "float32")
    long = ResponsePair(id="c", prompt=list(range(100, 140)), chosen=list(range(200, 260)), rejected=[3])
    with torch.no_grad():
        z, states = forward(model, collate([*ROWS, long], (2,), "mean", layout))
        for i, row in enumerate(ROWS):
            alone, pooled = forward(model, collate([row], (2,), "mean", layout))
            torch.testing.assert_close(alone, z[[i, i + 3]], rtol=0, atol=1e-4)
            torch.testing.assert_close(pooled, states[[i, i + 3]], rtol=0, atol=1e-4)


@LAYOUTS
def test_head_runs_at_response_positions_only(model: Any, layout: int) -> None:
    bind(model, "float32")
    seen = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape)))
    forward(model, collate(ROWS, (2,), "mean", layout))
    handle.remove()
    assert seen == [(4 + 2 + 2 + 6,)]


@LAYOUTS
def test_states_are_the_final_norm_states(model: Any, layout: int) -> None:
    bind(model, "float32")
    batch = collate(ROWS[:1], (2,), "last", layout)
    with torch.no_grad():
        _, states = forward(model, batch)
        chosen, rejected = (
            model.model(input_ids=torch.tensor([ROWS[0].prompt + response])).last_hidden_state
            for response in (ROWS[0].chosen, ROWS[0].rejected)
        )
    torch.testing.assert_close(states[0], chosen[0, 5], rtol=0, atol=1e-5)  # third content token: position 3 + 2
    torch.testing.assert_close(states[1], rejected[0, 3], rtol=0, atol=1e-5)


@LAYOUTS
def test_gradient_equals_full_logits(model: Any, layout: int) -> None:
    """Of a weighted sum of all four log-probs: the shared prompt gets the gradients of both of its responses."""
    bind(model, "float32")
    weight = model.model.layers[0].mlp.up_proj.weight
    factors = [1.0, -0.5, 2.0, 0.25]
    z, _ = forward(model, collate(ROWS, (2,), "mean", layout))
    (ours,) = torch.autograd.grad(torch.stack([f * z[i] for i, f in enumerate(factors)]).sum(), weight)
    total = torch.zeros(())
    for factor, (prompt, response) in zip(factors, sequences(ROWS), strict=True):
        ids = torch.tensor([prompt + response])
        log_probs = torch.log_softmax(type(model).forward(model, input_ids=ids).logits, dim=-1)[0]
        total = total + factor * sum(log_probs[t - 1, ids[0, t]] for t in range(len(prompt), ids.shape[1]))
    (expected,) = torch.autograd.grad(total, weight)
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "mistral", "gemma2", "phi3", "olmo2"])
def test_packed_lines_in_other_architectures(architecture: str) -> None:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 50000,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "head_dim": 16,
    }
    heads = {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(architecture, **shape, **heads, attn_implementation="sdpa")
    packed = bind(AutoModelForCausalLM.from_config(config).eval(), "float32")
    assert packed.shared_up_to >= max(row.length for row in ROWS)
    batch = collate(ROWS, (2,), "mean", packed.shared_up_to)
    assert batch["input_ids"].shape == (1, 18)
    with torch.no_grad():
        z, _ = forward(packed, batch)
        expected = [naive(packed, *sequence) for sequence in sequences(ROWS)]
    assert z.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_long_row_puts_its_batch_into_two_sequences() -> None:
    longest = max(row.length for row in ROWS)
    assert collate(ROWS, (2,), "mean", longest)["input_ids"].shape == (1, 9 + 9)
    assert collate(ROWS, (2,), "mean", longest - 1)["input_ids"].shape == (4, 7)


def of_config(config: Any) -> Any:
    """What has a configuration and nothing else of a model."""
    return SimpleNamespace(config=config)


def test_where_the_prompt_is_shared(model: nn.Module) -> None:
    assert shared_up_to(model) == 2048
    shape: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sliding = MistralForCausalLM(MistralConfig(**shape, num_attention_heads=2, num_key_value_heads=1, sliding_window=4))
    assert shared_up_to(sliding) == 4
    eager = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="eager")
    assert shared_up_to(eager) == 0
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1))
    assert shared_up_to(recurrent) == 0
    named_otherwise = AutoConfig.for_model("recurrent_gemma", attn_implementation="sdpa")
    assert shared_up_to(of_config(named_otherwise)) == 0
    nested = AutoConfig.for_model("gemma3", attn_implementation="sdpa")
    assert shared_up_to(of_config(nested)) == 0


def test_a_sliding_window_of_the_longest_sequence_changes_nothing() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 50000, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = MistralConfig(**shape, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2)
    for window, shared in ((7, True), (6, False)):
        config.sliding_window = window
        sliding = bind(MistralForCausalLM(config).eval(), "float32")
        batch = collate(ROWS, (2,), "mean", sliding.shared_up_to)
        assert (len(batch["input_ids"]) == 1) is shared
        with torch.no_grad():
            z, _ = forward(sliding, batch)
            expected = [naive(sliding, *sequence) for sequence in sequences(ROWS)]
        assert z.tolist() == pytest.approx(expected, abs=1e-4)


def test_bfloat16_keeps_fp32_weights_and_is_close(model: nn.Module) -> None:
    with torch.no_grad():
        exact, _ = forward(bind(model, "float32"), collate(ROWS, (2,), "mean", SHARED))
        z, states = forward(bind(model, "bfloat16"), collate(ROWS, (2,), "mean", SHARED))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert states.dtype == torch.float32
    assert 0 < (z - exact).abs().max() < 1.0


def test_softcapping() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config = Gemma2Config(**shape, **heads, final_logit_softcapping=0.5, attn_implementation="eager")
    gemma = Gemma2ForCausalLM(config).eval()
    nn.init.normal_(gemma.model.embed_tokens.weight, std=1.0)
    row = ResponsePair(id="a", prompt=[5, 6], chosen=[11, 12, 13], rejected=[15])
    with torch.no_grad():
        z, _ = forward(bind(gemma, "float32"), collate([row], (1,), "mean", APART))
        expected = [naive(gemma, *sequence) for sequence in sequences([row])]
    assert z.tolist() == pytest.approx(expected, abs=1e-4)
    assert abs(z[1].item() + math.log(64)) < 1.0  # capped at half a nat: close to uniform
