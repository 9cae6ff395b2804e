"""Sequences one after another through transformers' own flash-attention path; only its kernel is replaced."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    modeling_flash_attention_utils,
)

from sparring.stages.train.batch.collate import collate
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.model import attention
from sparring.stages.train.model import forward as passes
from sparring.stages.train.model.forward import bind, flash_runs, forward
from sparring.stages.train.model.scorer import bind_checked, score
from tests.tiny import tiny_policy

ROWS = [
    ResponsePair(id="a", prompt=[5, 600, 7000], chosen=[11, 42000, 13, 2], rejected=[15, 2]),
    ResponsePair(id="b", prompt=[17], chosen=[18, 19], rejected=[20, 31000, 22, 23, 24, 2]),
    ResponsePair(id="c", prompt=list(range(100, 130)), chosen=list(range(200, 240)), rejected=[3, 4, 2]),
]
FACTORS = torch.tensor([1.0, -0.5, 2.0, 0.25, 0.7, -1.5])


def kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """flash_attn_varlen_func by its documentation: q, k, v (N, heads, head_dim) of sequences one after another."""
    assert cu_seqlens_q.dtype == torch.int32 and cu_seqlens_q.equal(cu_seqlens_k)
    assert cu_seqlens_q[0] == 0 and cu_seqlens_q[-1] == len(q) == len(k)
    assert max_seqlen_q == max_seqlen_k == cu_seqlens_q.diff().max() and isinstance(max_seqlen_q, int)
    assert causal and dropout_p == 0.0
    lengths = cu_seqlens_q.diff().tolist()
    outputs = [
        attend(one_q, one_k, one_v, softmax_scale, window_size[0], softcap)
        for one_q, one_k, one_v in zip(*(t.split(lengths) for t in (q, k, v)), strict=True)
    ]
    return torch.cat(outputs)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int, softcap: float) -> Tensor:
    """Causal attention of one sequence; `window` tokens to the left are seen, all if negative."""
    n, groups = len(q), q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if not softcap else softcap * torch.tanh(scores / softcap)
    distance = torch.arange(n)[:, None] - torch.arange(n)
    seen = (distance >= 0) & ((distance <= window) | (window < 0))
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers' lazy import leaves behind when flash-attn is installed."""
    utils = modeling_flash_attention_utils
    monkeypatch.setattr(utils, "_loaded_implementation", attention.FLASH)
    monkeypatch.setattr(utils, "_flash_varlen_fn", kernel)
    monkeypatch.setattr(utils, "_process_flash_kwargs_fn", utils._lazy_define_process_function(kernel))


def with_flash(model: Any) -> Any:
    """Bind a model whose attention is flash-attn's, which transformers refuses to set without a GPU."""
    model.config._attn_implementation = attention.FLASH
    return bind(model, "float32")


def scored(model: Any) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """The batch, z, states, and the gradient of the first layer."""
    batch = collate(ROWS, (2,), "mean", model.shared_up_to, model.flat)
    z, states = forward(model, batch)
    loss = (FACTORS * z).sum() + states.square().sum()
    (gradient,) = torch.autograd.grad(loss, model.base_model.layers[0].mlp.down_proj.weight)
    return batch, z.detach(), states.detach(), gradient


@pytest.mark.parametrize("layout", ["packed_sdpa", "flash"])
def test_both_layouts_without_padding_equal_the_padded_one(layout: str, flash: None, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_policy(tmp_path)).eval()
    tokens = sum(row.tokens if layout == "flash" else row.shared_length for row in ROWS)
    batch, z, states, gradient = scored(with_flash(model) if layout == "flash" else bind(model, "float32"))
    assert batch["input_ids"].shape == (1, tokens)
    model.config._attn_implementation = "eager"
    padded, *expected = scored(bind(model, "float32"))
    assert padded["input_ids"].shape == (6, 70)
    assert expected[0].std() > 5 and expected[2].abs().max() > 0.1
    for ours, theirs, rtol in zip((z, states, gradient), expected, (0, 1e-4, 1e-4), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "mistral", "gemma2", "phi3", "olmo2"])
def test_other_architectures_hand_on_where_sequences_end(architecture: str, flash: None) -> None:
    """With a sliding window shorter than the longest sequence where the architecture has one."""
    torch.manual_seed(0)
    shape = {"vocab_size": 50000, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2, "pad_token_id": 0}
    window = {"sliding_window": 6} if architecture in ("mistral", "gemma2") else {}
    cap = {"attn_logit_softcapping": 0.5} if architecture == "gemma2" else {}
    config = AutoConfig.for_model(architecture, **shape, **heads, **window, **cap, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        padded = collate(ROWS, (2,), "mean", 0)
        expected, _ = forward(bind(model, "float32"), padded)
        flat = with_flash(model)
        z, _ = forward(flat, collate(ROWS, (2,), "mean", flat.shared_up_to, flat.flat))
    assert flat.flat and flat.shared_up_to == 0
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ends", [True, False], ids=["as documented", "sequences see each other"])
def test_flash_attention_is_checked_in_bfloat16(
    ends: bool, flash: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_policy(tmp_path)).eval()
    monkeypatch.setattr(model, "set_attn_implementation", partial(setattr, model.config, "_attn_implementation"))
    model.config._attn_implementation = attention.FLASH
    if not ends:
        whole = lambda q, k, v, *_, **__: attend(q, k, v, None, -1, 0.0)  # noqa: E731
        monkeypatch.setattr(modeling_flash_attention_utils, "_flash_varlen_fn", whole)
    bind_checked(model, "bfloat16")
    assert model.flat is ends is (model.config._attn_implementation == attention.FLASH)
    assert ends or "sequences without padding it is off by" in model.route.why


@pytest.mark.parametrize("window", [4096, 6])
def test_capped_attention_is_packed_and_as_eager(window: int) -> None:
    """With a sliding window shorter than the longest sequence as well, where rows are padded."""
    shape = {"vocab_size": 50000, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5, "pad_token_id": 0}
    found = []
    for cap, loaded in ((0.5, "sdpa"), (0.5, "eager"), (None, "sdpa")):
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            "gemma2", **shape, **heads, attn_implementation=loaded, attn_logit_softcapping=cap, sliding_window=window
        )
        model = bind(AutoModelForCausalLM.from_config(config).eval(), "float32")
        batch, *figures = scored(model)
        packed = loaded == "sdpa" and window > 6
        assert batch["input_ids"].shape == ((1, sum(row.shared_length for row in ROWS)) if packed else (6, 70))
        found.append(figures)
    for ours, theirs, rtol in zip(found[0], found[1], (0, 1e-4, 1e-4), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-4)
    assert (found[0][0] - found[2][0]).abs().max() > 0.1  # the cap matters here


def test_the_reference_scores_sequences_one_after_another(flash: None, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_policy(tmp_path)).eval()
    expected = score(bind(model, "float32"), ROWS)
    for ours, theirs in zip(score(with_flash(model), ROWS), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_flat_tokens_are_exactly_the_sampled_ones() -> None:
    rows = [
        ResponsePair(id="a", prompt=[5, 6], chosen=[7, 2], rejected=[8]),
        ResponsePair(id="b", prompt=[9], chosen=[3], rejected=[4]),
    ]
    batch = collate(rows, (2,), "mean", 0, flat=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2, 9, 3, 5, 6, 8, 9, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 1]]
    assert batch["lengths"].tolist() == [4, 2, 3, 2]
    tokens = batch["input_ids"].flatten()
    assert tokens[batch["positions"]][batch["response_mask"]].tolist() == [7, 2, 3, 8, 4]
    assert tokens[batch["predictors"]][batch["response_mask"]].tolist() == [6, 7, 9, 6, 9]
    given = attention.arguments(batch["attention_mask"], batch["lengths"])
    assert given["attention_mask"] is None and given["cu_seq_lens_q"].tolist() == [0, 4, 6, 9, 11]
    assert given["max_length_q"] == given["max_length_k"] == 4


def test_where_flash_attention_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = AutoModelForCausalLM.from_pretrained(tiny_policy(tmp_path))
    assert not flash_runs(llama, "bfloat16")  # no GPU here
    monkeypatch.setattr(passes, "is_flash_attn_2_available", lambda: True)
    assert flash_runs(llama, "bfloat16") and not flash_runs(llama, "float32")
    recurrent: nn.Module = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1))
    assert not flash_runs(recurrent, "bfloat16")
