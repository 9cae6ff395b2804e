"""The published folder against `save_pretrained`, and what publishing holds in memory."""

from __future__ import annotations

import errno
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from sparring.stages.train.files import publish as module
from sparring.stages.train.files.publish import changes, publish
from sparring.stages.train.files.safetensors_writer import ShardWriter, read, tensors_of
from tests.refusals import refused
from tests.tiny import tiny_policy


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def mixtral(folder: Path) -> Path:
    """A mixture of experts, which transformers joins into single tensors when it loads them."""
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def policy_of(kind: str, folder: Path) -> Path:
    return mixtral(folder) if kind == "experts" else tiny_policy(folder, tied=kind == "tied")


@pytest.mark.parametrize("kind", ["tied", "untied", "experts"])
def test_one_file_is_that_of_save_pretrained(kind: str, tmp_path: Path) -> None:
    policy = policy_of(kind, tmp_path / "policy")
    model = loaded(policy)
    model.save_pretrained(tmp_path / "theirs")
    publish(model, policy, tmp_path / "ours", torch.float32, keep=True)
    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert [path.name for path in (tmp_path / "ours").glob("*.index.json")] == []


@pytest.mark.parametrize("kind", ["tied", "untied", "experts"])
def test_shards_hold_the_same_tensors_and_load(kind: str, tmp_path: Path) -> None:
    policy = policy_of(kind, tmp_path / "policy")
    publish(loaded(policy), policy, tmp_path / "ours", torch.float32, keep=True, limit=20_000)
    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(policy)
    assert ours.keys() == theirs.keys() and len(set(ours.values())) >= 3
    assert all(torch.equal(read(ours[name], name), read(theirs[name], name)) for name in ours)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: path.name for name, path in ours.items()}
    total = sum(path.stat().st_size for path in set(ours.values()))
    assert total - 20_000 < index["metadata"]["total_size"] < total
    again = loaded(tmp_path / "ours").state_dict()
    assert all(torch.equal(again[name], value) for name, value in loaded(policy).state_dict().items())


def test_a_file_holds_at_most_its_limit_or_one_larger_tensor(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, limit=100)
    for name, size in (("a", 10), ("b", 15), ("c", 40), ("d", 1), ("e", 24)):
        writer.add(name, torch.ones(size))
    writer.close()
    held = []
    for path in sorted(tmp_path.glob("*.safetensors")):
        with safe_open(path, "pt") as handle:
            held.append((path.name, list(handle.keys())))
    assert held == [
        ("model-00001-of-00003.safetensors", ["a", "b"]),
        ("model-00002-of-00003.safetensors", ["c"]),
        ("model-00003-of-00003.safetensors", ["d", "e"]),
    ]


def test_a_policy_in_shards_publishes_and_compares(tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path / "policy")
    model = loaded(policy)
    publish(model, policy, tmp_path / "shards", torch.float32, keep=True, limit=20_000)
    with torch.no_grad():
        model.model.norm.weight += 0.5
    publish(model, tmp_path / "shards", tmp_path / "whole", torch.float32, keep=True)
    assert not list((tmp_path / "whole").glob("*.index.json"))
    found = changes(tmp_path / "shards", tmp_path / "whole")
    assert found["changed_fraction"] == pytest.approx(64 / found["compared_parameters"])
    assert found["max_change"] == 0.5


@pytest.mark.parametrize(("kind", "limit"), [("tied", 100_000), ("untied", 100_000), ("experts", 4_000)])
def test_memory_is_one_file_and_one_tensor(
    kind: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(kind, tmp_path / "policy")
    alive: dict[int, int] = {}
    peak = [0]

    def count(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in alive:
            alive[storage.data_ptr()] = storage.nbytes()
            weakref.finalize(storage, alive.pop, storage.data_ptr())
        peak[0] = max(peak[0], sum(alive.values()))

    def watched(model: Any, dtype: torch.dtype, keep: bool) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in stored(model, dtype, keep):
            count(tensor)
            yield name, tensor
            del tensor

    class Watched(ShardWriter):
        def add(self, name: str, tensor: Tensor) -> None:
            super().add(name, tensor)
            count(self.held[name])

    stored = module._stored
    model = loaded(policy)
    monkeypatch.setattr(module, "_stored", watched)
    monkeypatch.setattr(module, "ShardWriter", Watched)
    publish(model, policy, tmp_path / "ours", torch.float32, keep=True, limit=limit)
    largest = max(parameter.nbytes for parameter in model.parameters())
    copies = 2 if kind == "experts" else 1  # joined experts are held once more while they are split
    assert largest < peak[0] <= copies * largest + limit
    assert not alive


def test_published_in_bfloat16_is_the_rounded_policy(tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path / "policy")
    publish(loaded(policy), policy, tmp_path / "ours", torch.bfloat16, keep=True)
    before, after = tensors_of(policy), tensors_of(tmp_path / "ours")
    for name, path in after.items():
        assert torch.equal(read(path, name), read(before[name], name).bfloat16())
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_error_of_the_disk_comes_after_the_last_tensor(tmp_path: Path) -> None:
    """The other ranks gather every tensor with this one; leaving early would have them wait for ever."""
    seen = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for i in range(5):
            seen.append(i)
            yield str(i), torch.ones(100)

    writer = ShardWriter(tmp_path / "missing", limit=300)
    with refused(OSError, "missing") as caught:
        module._write(writer, tensors())
    assert caught.value.errno == errno.ENOENT
    assert seen == [0, 1, 2, 3, 4]
