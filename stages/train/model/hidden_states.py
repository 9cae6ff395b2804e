"""Reads the states for the latent repulsion in the one forward pass, and measures the gradients that return to them.

Where they are read, the states part in two: onward to the head, which sends back the gradient of L_beta, and to the
pool, which sends back that of lambda L_rep. Both are computed in the one backward pass, at no pass of their own. They
are summed over tokens, as they are for every parameter that all tokens share: what pulls all tokens of a response one
way, as the repulsion does, adds up, and what pulls them apart cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparring.stages.train.config import LAST, check_layer


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the decoder layers of a transformers model."""
    count = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next(module for module in lists if len(module) == count)


class Reading:
    """Reads the states behind one decoder layer, or the last hidden state.

    gradients: (2, H) float32, sums over tokens and backward passes of dL_beta/dx and d(lambda L_rep)/dx, x the states
    that were read, until the owner clears it: the gradients of a bias b in x + b. None before the first pass; both
    carry the same factors of loss_scale and accumulation.
    """

    def __init__(self, model: Any, layer: int) -> None:
        self.module: nn.Module | None = None
        if layer != LAST:
            layers = decoder_layers(model)
            check_layer(layer, len(layers))
            self.module = layers[layer]
        self.gradients: Tensor | None = None

    def through(self, trunk: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Run the trunk; return its last hidden state, to go on with, and the states to pool."""
        if self.module is None:
            return self._part(trunk())
        taken: list[Tensor] = []

        def take(module: nn.Module, inputs: Any, output: Any) -> Any:
            onward, states = self._part(output if isinstance(output, Tensor) else output[0])
            taken.append(states)
            return onward if isinstance(output, Tensor) else (onward, *output[1:])

        handle = self.module.register_forward_hook(take)
        try:
            hidden = trunk()
        finally:
            handle.remove()
        return hidden, taken[0]

    def _part(self, x: Tensor) -> tuple[Tensor, Tensor]:
        onward, states = x.view_as(x), x.view_as(x)
        if x.requires_grad:
            onward.register_hook(lambda gradient: self._add(0, gradient))
            states.register_hook(lambda gradient: self._add(1, gradient))
        return onward, states

    def _add(self, index: int, gradient: Tensor) -> None:
        if self.gradients is None:
            self.gradients = torch.zeros((2, gradient.shape[-1]), device=gradient.device)
        self.gradients[index] += gradient.float().flatten(0, -2).sum(0)
