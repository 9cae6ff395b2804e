"""Adapters: LoRA through peft in place, so that the model stays what it is, and its linear layers in 4 bits (QLoRA).

    model = load_base(folder, four_bit=True)
    attach(model, trainer.adapter, seed=0)

The layers in 4 bits hold their weights as buffers: ZeRO-3 partitions parameters, so every worker holds all of the
4-bit base (half a byte per weight) and its share of everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparring.stages.errors import ConfigError
from sparring.stages.plain import listed
from sparring.stages.train.config import Adapter, AdapterConfig, OffAdapter


def load_base(folder: Path, four_bit: bool, config: Any = None) -> Any:
    """Load a policy with fp32 weights; `four_bit`: its linear layers but the head as FourBit."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if not four_bit:
        return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=False,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, quantization_config=nf4)
    import bitsandbytes

    # in the place of bitsandbytes' layers, whose weights are parameters
    for name in [name for name, one in model.named_modules() if isinstance(one, bitsandbytes.nn.Linear4bit)]:
        model.set_submodule(name, FourBit(model.get_submodule(name)))
    return model


class FourBit(nn.Linear):
    """y = x W^T + b with W in blocks of 64 of 4 bits each (nf4) and one fp32 scale a block. W gets no gradient."""

    def __init__(self, quantized: Any) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = quantized.in_features, quantized.out_features
        self.register_buffer("weight", quantized.weight.data, persistent=False)
        self.register_parameter("bias", quantized.bias)
        self.quant_state = quantized.weight.quant_state

    def forward(self, x: Tensor) -> Tensor:
        """Multiply in autocast's dtype, or else in that of `x`."""
        import bitsandbytes

        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return bitsandbytes.matmul_4bit(x, self.weight, quant_state=self.quant_state, bias=bias)


def attach(model: Any, adapter: AdapterConfig, seed: int) -> None:
    """Freeze the model and add A, random by `seed`, and B, zero, to the targets; nothing when the adapter is off."""
    if isinstance(adapter, OffAdapter):
        return
    _check_targets(model, adapter)
    from peft import LoraConfig

    targets: Any = list(adapter.targets) or "all-linear"
    alpha: Any = adapter.alpha  # any number, which peft's type does not allow
    wanted = LoraConfig(r=adapter.rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets, bias="none")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model.add_adapter(wanted)
        except ValueError as error:
            raise ConfigError(
                f"trainer.adapter.targets={list(adapter.targets)}: {' '.join(str(error).split())}"
            ) from None

    def expect_no_frozen_weights(module: nn.Module, incompatible: Any) -> None:
        """Checkpoints leave out what is frozen; it was loaded from the policy."""
        frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in frozen]

    model.register_load_state_dict_post_hook(expect_no_frozen_weights)


def _check_targets(model: Any, adapter: Adapter) -> None:
    """ConfigError where a target names no linear layer of the model, or the rank is beyond all that it names."""
    from transformers.pytorch_utils import Conv1D

    key, head = f"trainer.adapter.targets={list(adapter.targets)}", model.get_output_embeddings()
    names: dict[Any, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))
    }
    layers = {}
    for module, name in names.items():
        if module is not head:
            is_linear = isinstance(module, nn.Linear)  # in 4 bits the weight's shape is of bytes
            layers[f".{name}"] = min((module.in_features, module.out_features) if is_linear else module.weight.shape)
    if head in names and any(f".{names[head]}".endswith(f".{target}") for target in adapter.targets):
        raise ConfigError(f"{key}: the head takes no adapter; leave it out.")
    unknown = [target for target in adapter.targets if not any(name.endswith(f".{target}") for name in layers)]
    if unknown:
        choices = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        raise ConfigError(f"{key}: the policy has no linear layer {listed(unknown)}; choose from {choices}.")
    ends = tuple(f".{target}" for target in adapter.targets) or ("",)
    most = max(side for name, side in layers.items() if name.endswith(ends))
    if adapter.rank > most:
        raise ConfigError(
            f"trainer.adapter.rank={adapter.rank}: the layers that it is put on have at most {most} rows or columns, "
            f"and a product of more than that rank is no more; use {most} or less, or adapter=off."
        )


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """What an adapter adds to one weight."""

    a: nn.Parameter
    """(rank, in)"""
    b: nn.Parameter
    """(out, rank)"""
    scale: float
    """alpha / rank"""
    transposed: bool
    """The weight is (in, out)."""

    def delta(self) -> Tensor:
        """scale * B A, shaped like the weight, fp32 on the CPU."""
        product = self.scale * (self.b.detach().float().cpu() @ self.a.detach().float().cpu())
        return product.T if self.transposed else product


def low_rank(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """Yield the name of each weight with an adapter, as it was without one, and its adapter."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            yield (
                f"{name}.weight",
                LowRank(
                    a=layer.lora_A["default"].weight,
                    b=layer.lora_B["default"].weight,
                    scale=layer.scaling["default"],
                    transposed=bool(getattr(layer, "fan_in_fan_out", False)),
                ),
            )
