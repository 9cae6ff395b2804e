from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from pipeline.errors import DataError
from stages.train.collate import Row, collate
from stages.train.forward import bind, forward
from tests.tiny import tiny_policy

ROWS = [
    Row(id="a", prompt=[5, 600, 7000], chosen=[11, 42000, 13, 2], rejected=[15, 2]),
    Row(id="b", prompt=[17], chosen=[18, 19], rejected=[20, 31000, 22, 23, 24, 2]),
]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder = tiny_policy(tmp_path_factory.mktemp("tiny"), tied=request.param)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def naive(model: nn.Module, prompt: list[int], response: list[int]) -> float:
    """Full logits of one unpadded sequence, log_softmax, sum over the response."""
    ids = torch.tensor([prompt + response])
    log_probs = torch.log_softmax(type(model).forward(model, input_ids=ids).logits.double(), dim=-1)[0]
    positions = range(len(prompt), ids.shape[1])
    return sum(log_probs[t - 1, ids[0, t]].item() for t in positions)


def sequences(rows: list[Row]) -> list[tuple[list[int], list[int]]]:
    return [(r.prompt, r.chosen) for r in rows] + [(r.prompt, r.rejected) for r in rows]


def test_equals_full_logits(model: nn.Module) -> None:
    with torch.no_grad():
        z, _ = forward(bind(model, "float32"), collate(ROWS, (2,), "mean"))
        expected = [naive(model, *sequence) for sequence in sequences(ROWS)]
    assert z.dtype == torch.float64
    assert z.tolist() == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 5  # not all equal


def test_padding_and_company_do_not_matter(model: nn.Module) -> None:
    bind(model, "float32")
    long = Row(id="c", prompt=list(range(100, 140)), chosen=list(range(200, 260)), rejected=[3])
    with torch.no_grad():
        z, states = forward(model, collate([*ROWS, long], (2,), "mean"))
        for i, row in enumerate(ROWS):
            alone, pooled = forward(model, collate([row], (2,), "mean"))
            torch.testing.assert_close(alone, z[[i, i + 3]], rtol=0, atol=1e-4)
            torch.testing.assert_close(pooled, states[[i, i + 3]], rtol=0, atol=1e-4)


def test_head_runs_at_response_positions_only(model: nn.Module) -> None:
    bind(model, "float32")
    seen = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape)))
    forward(model, collate(ROWS, (2,), "mean"))
    handle.remove()
    assert seen == [(4 + 2 + 2 + 6, 49152)]


def test_states_are_the_final_norm_states(model: nn.Module) -> None:
    bind(model, "float32")
    batch = collate(ROWS[:1], (2,), "last")
    with torch.no_grad():
        _, states = forward(model, batch)
        hidden = model.model(input_ids=torch.tensor([ROWS[0].prompt + ROWS[0].chosen])).last_hidden_state
    torch.testing.assert_close(states[0], hidden[0, 5], rtol=0, atol=1e-5)  # third content token: position 3 + 2


def test_gradient_equals_full_logits(model: nn.Module) -> None:
    bind(model, "float32")
    z, _ = forward(model, collate(ROWS[:1], (2,), "mean"))
    weight = model.model.layers[0].mlp.up_proj.weight
    (ours,) = torch.autograd.grad(z[0], weight)
    ids = torch.tensor([ROWS[0].prompt + ROWS[0].chosen])
    log_probs = torch.log_softmax(type(model).forward(model, input_ids=ids).logits, dim=-1)[0]
    (expected,) = torch.autograd.grad(sum(log_probs[t - 1, ids[0, t]] for t in range(3, 7)), weight)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_bfloat16_keeps_fp32_weights_and_is_close(model: nn.Module) -> None:
    with torch.no_grad():
        exact, _ = forward(bind(model, "float32"), collate(ROWS, (2,), "mean"))
        z, states = forward(bind(model, "bfloat16"), collate(ROWS, (2,), "mean"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert states.dtype == torch.float32
    assert 0 < (z - exact).abs().max() < 1.0


def test_softcapping() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config = Gemma2Config(**shape, **heads, final_logit_softcapping=0.5, attn_implementation="eager")
    gemma = Gemma2ForCausalLM(config).eval()
    nn.init.normal_(gemma.model.embed_tokens.weight, std=1.0)
    row = Row(id="a", prompt=[5, 6], chosen=[11, 12, 13], rejected=[15])
    with torch.no_grad():
        z, _ = forward(bind(gemma, "float32"), collate([row], (1,), "mean"))
        expected = [naive(gemma, *sequence) for sequence in sequences([row])]
    assert z.tolist() == pytest.approx(expected, abs=1e-4)
    assert abs(z[1].item() + math.log(64)) < 1.0  # capped at half a nat: close to uniform


def test_architectures_that_scale_logits_are_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_policy(tmp_path))
    model.config.logits_scaling = 8.0
    with pytest.raises(DataError, match=r"logits_scaling=8\.0"):
        bind(model, "float32")
