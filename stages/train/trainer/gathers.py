"""ZeRO-3 gathers weights in bfloat16 where they are computed with in bfloat16: half of the bytes, the same numbers.

    in_bfloat16(model)      once its engine is made

Autocast rounds the weights of linear layers to bfloat16 before each product, so they may as well be rounded before they
travel. Masters, and what is published and saved, stay fp32, and gradients are reduced in fp32: DeepSpeed's own section
`torch_autocast` would reduce those in bfloat16 too, and round the embeddings that a tied head shares.
"""

from __future__ import annotations

import torch
from deepspeed.runtime.torch_autocast import PARAM_COMM_DTYPE_ATTR_NAME
from torch import nn


def in_bfloat16(model: nn.Module) -> None:
    """Mark the weights that linear layers alone read, for DeepSpeed to gather them in bfloat16 in a pass."""
    read: dict[nn.Parameter, bool] = {}
    for module in model.modules():
        linear = type(module) is nn.Linear
        for parameter in module.parameters(recurse=False):
            read[parameter] = linear and read.get(parameter, True)
    for parameter, by_linear in read.items():
        if by_linear:
            setattr(parameter, PARAM_COMM_DTYPE_ATTR_NAME, torch.bfloat16)
