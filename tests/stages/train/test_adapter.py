from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sparring.pipeline.config import load
from sparring.stages.errors import ConfigError
from sparring.stages.train import config
from sparring.stages.train.config import Adapter, OffAdapter, require_packages
from sparring.stages.train.files.publish import adapted, publish
from sparring.stages.train.files.safetensors_writer import read, tensors_of
from sparring.stages.train.model.adapter import FourBit, LowRank, attach, load_base, low_rank
from tests.refusals import refused
from tests.tiny import tiny_policy


def lora(*targets: str, name: Any = "lora") -> Adapter:
    return Adapter(name=name, rank=4, alpha=8.0, targets=targets)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy"))


def trained(policy: Path, adapter: Adapter) -> Any:
    """A policy whose B are random, as after training."""
    model = load_base(policy, adapter.four_bit)
    attach(model, adapter, seed=0)
    torch.manual_seed(1)
    for _, added in low_rank(model):
        nn.init.normal_(added.b)
    return model


def test_delta_by_hand() -> None:
    a, b = nn.Parameter(torch.tensor([[1.0, 2.0]])), nn.Parameter(torch.tensor([[3.0], [0.0], [-1.0]]))
    plain = LowRank(a=a, b=b, scale=2.0, transposed=False).delta()
    assert plain.tolist() == [[6.0, 12.0], [0.0, 0.0], [-2.0, -4.0]]
    assert torch.equal(LowRank(a=a, b=b, scale=2.0, transposed=True).delta(), plain.T)


def test_attaching_changes_no_output_and_trains_only_a_and_b(policy: Path) -> None:
    ids = torch.arange(3, 40)[None]
    plain = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    model = load_base(policy, False)
    attach(model, lora(), seed=0)
    assert type(model) is type(plain) and type(model.base_model) is type(plain.base_model)
    assert torch.equal(model(ids).logits, plain(ids).logits)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert len(list(low_rank(model))) == 2 * 7  # q k v o gate up down


def test_a_depends_on_the_seed_alone(policy: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        model = load_base(policy, False)
        attach(model, lora("q_proj"), seed)
        return next(low_rank(model))[1].a

    state = torch.get_rng_state()
    assert torch.equal(first(3), first(3)) and not torch.equal(first(3), first(4))
    assert torch.equal(torch.get_rng_state(), state)


def test_published_is_what_peft_merges(policy: Path, tmp_path: Path) -> None:
    model = trained(policy, lora())
    publish(model, policy, tmp_path / "ours", torch.float32, keep=True)
    ids = torch.arange(3, 40)[None]
    shown = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    torch.testing.assert_close(shown(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-3)
    found = tensors_of(tmp_path / "ours")
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.merge()
            torch.testing.assert_close(read(found[f"{name}.weight"], f"{name}.weight"), module.base_layer.weight)


def test_published_of_qlora_is_the_full_policy_and_its_adapter(policy: Path, tmp_path: Path) -> None:
    model = trained(policy, lora(name="qlora"))
    publish(model, policy, tmp_path / "ours", torch.float32, keep=True)
    before, after = tensors_of(policy), tensors_of(tmp_path / "ours")
    assert before.keys() == after.keys()
    added = {name: found.delta() for name, found in low_rank(model)}
    for name in before:
        expected = read(before[name], name) + added.get(name, torch.zeros(()))
        assert torch.equal(read(after[name], name), expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bit_layer_is_the_dequantized_one(policy: Path, dtype: torch.dtype) -> None:
    import bitsandbytes

    layer = load_base(policy, True).model.layers[0].mlp.up_proj
    full = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).model.layers[0].mlp.up_proj
    assert isinstance(layer, FourBit) and layer.weight.numel() == full.weight.numel() // 2
    assert not list(layer.parameters()) and not layer.state_dict()
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight, layer.quant_state)
    assert 0 < (weight - full.weight).abs().mean() < 0.1 * full.weight.abs().mean()
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        y, expected = layer(ours), nn.functional.linear(theirs, weight)
    y.sum().backward()
    expected.sum().backward()
    assert y.dtype == dtype and torch.equal(y, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_wrong_targets_are_refused_before_training(policy: Path) -> None:
    with refused(ConfigError, "trainer.adapter.targets=['qproj']", "layer qproj", "q_proj"):
        attach(load_base(policy, False), lora("qproj"), seed=0)
    with refused(ConfigError, "targets=['lm_head']"):
        attach(load_base(policy, False), lora("lm_head"), seed=0)
    with refused(ConfigError, "layer embed_tokens, nope"):
        attach(load_base(policy, False), lora("q_proj", "nope", "embed_tokens"), seed=0)
    model = load_base(policy, False)
    attach(model, lora(), seed=0)
    with refused(ConfigError, "trainer.adapter.targets", "weight"):
        adapted(model, policy.parent)


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_a_rank_beyond_the_layers_is_refused(policy: Path, name: Any) -> None:
    """k_proj is 32 x 64; with all layers 64 is the most, whatever k_proj has."""

    def attached(rank: int, *targets: str) -> None:
        adapter = Adapter(name=name, rank=rank, alpha=8.0, targets=targets)
        attach(load_base(policy, adapter.four_bit), adapter, seed=0)

    attached(64)
    attached(32, "k_proj")
    with refused(ConfigError, "trainer.adapter.rank=65", "64"):
        attached(65)
    with refused(ConfigError, "trainer.adapter.rank=33", "32"):
        attached(33, "k_proj")


@pytest.mark.parametrize(("field", "value"), [("alpha", 1e308), ("alpha", 1e-320), ("alpha", 0.0), ("rank", 0)])
def test_an_adapter_of_nothing_or_without_a_scale_is_refused(field: str, value: float) -> None:
    with refused(ConfigError, f"trainer.adapter.{field}={value}"):
        load(["hardware=cpu", "adapter=lora", f"trainer.adapter.{field}={value}"])


def test_an_unknown_adapter_is_refused() -> None:
    with refused(ConfigError, "trainer.adapter.name=dora", "off, lora, qlora"):
        load(["hardware=cpu", "adapter=lora", "trainer.adapter.name=dora"])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    off = OffAdapter(name="off")
    for optimizer, adapter in (("adamw_8bit", off), ("rmsprop", lora()), ("rmsprop", lora(name="qlora"))):
        require_packages(optimizer, adapter)
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    require_packages("rmsprop", off)
    with refused(ConfigError, "optimizer=adamw_8bit", "bitsandbytes", "trainer.optimizer=adamw"):
        require_packages("adamw_8bit", off)
    with refused(ConfigError, "adapter=qlora", "bitsandbytes", "adapter=lora"):
        require_packages("rmsprop", lora(name="qlora"))
    with refused(ConfigError, "adapter=lora", "package peft", "adapter=off"):
        require_packages("rmsprop", lora())
