"""What a decoder layer keeps of its forward pass for the backward pass: its input, and what takes time to compute.

    keep_products(model)      once, before training

That is what its attention gives, and the products with its weights that are no narrower than what went in. The rest
(norms, rotations, activations, narrow keys and values) takes half of the memory and hardly any time: the backward pass
computes it again, to the last bit.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

PRODUCTS = {"aten::mm": 0, "aten::addmm": 1}
"""Operator -> the argument that is multiplied by the next one, a weight."""
ATTENTION = (
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "flash_attn::_flash_attn_varlen_forward",
)


def keep_products(model: Any) -> None:
    """Let the layers of a transformers model compute again what costs no time; nothing where it cannot be told to."""
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": _contexts})


def _contexts() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """For a layer's forward pass, and for that which the backward pass repeats."""
    outputs: deque[Any] = deque()
    return _Keeps(outputs, again=False), _Keeps(outputs, again=True)


class _Keeps(TorchDispatchMode):
    """Notes what is kept, and gives it back in the same order.

    Not torch's create_selective_checkpoint_contexts: it expects every operator twice, and ZeRO-3, which gathers weights
    in hooks around modules, does not gather the same ones again.
    """

    def __init__(self, outputs: deque[Any], again: bool) -> None:
        super().__init__()
        self.outputs, self.again = outputs, again

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_kept(operator.name(), args):
            return operator(*args, **kwargs or {})
        if self.again:
            return self.outputs.popleft()
        output = operator(*args, **kwargs or {})
        self.outputs.append(tree_map_only(Tensor, Tensor.detach, output))
        return output


def _is_kept(name: str, arguments: Any) -> bool:
    if name in PRODUCTS:
        entered, weight = arguments[PRODUCTS[name] :][:2]
        return bool(weight.shape[1] >= entered.shape[1])
    return name.startswith(ATTENTION)
