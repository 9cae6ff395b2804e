"""Log-probs of tokens from last hidden states, in chunks of tokens: the full logits of a batch never exist.

    chunked(model.get_output_embeddings(), config.final_logit_softcapping, scale)      once, in `forward.bind`
    log_probs = model.get_output_embeddings()(hidden, tokens)

The pass takes the place of the output embedding's own `forward`: ZeRO-3's hooks around that module then gather the
weight once for all chunks of the forward pass, and once more for all chunks of the backward pass.

No chunk's logits are kept; backward computes them again. Not so for a head that is not trained (LoRA): what its
backward needs of a chunk is (C, H), and is computed in the forward pass. Without tokens the head returns logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparring.stages.errors import DataError

CHUNK = 512
"""Tokens whose logits exist at the same time."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What turns a last hidden state x into logits l = softcap tanh(u / softcap), u = scale (W x + b)."""

    weight: Tensor
    """(V, H)."""
    bias: Tensor | None = None
    """(V,)."""
    softcap: float | None = None
    """final_logit_softcapping; None: l = u."""
    scale: float = 1.0

    def logits(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Logits (N, stop - start) float32 of states (N, H) for the tokens start .. stop of the vocabulary."""
        bias = None if self.bias is None else self.bias[start:stop]
        logits = nn.functional.linear(hidden, self.weight[start:stop], bias).float()
        if self.scale != 1:
            logits *= self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def chunked(output: nn.Module, softcap: float | None, scale: float = 1.0) -> None:
    """Make `output(hidden, tokens)` return log-probs; softcap and scale: as in Head."""
    if type(output) is not nn.Linear:
        raise DataError(
            f"the output embedding is a {type(output).__name__}, and log-probs are computed in chunks of a plain "
            "torch.nn.Linear only; choose a policy of another architecture, or leave its head as it is."
        )

    def forward(self: nn.Linear, hidden: Tensor, tokens: Tensor | None = None) -> Tensor:
        if tokens is None:
            return nn.functional.linear(hidden, self.weight, self.bias)
        return log_probs(hidden, tokens, Head(weight=self.weight, bias=self.bias, softcap=softcap, scale=scale))

    changed: Any = output
    changed.forward = MethodType(forward, output)


def log_probs(hidden: Tensor, tokens: Tensor, head: Head) -> Tensor:
    """log softmax(l)[token] of each token, (N,) float32, in nats. hidden: (N, H); tokens: (N,) int64.

    The product W x is in autocast's dtype where that is on, the softmax always in float32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    early = torch.is_grad_enabled() and hidden.requires_grad and not trained
    log_p: Tensor = _LogProbs.apply(hidden, tokens, head.weight, head.bias, head.softcap, head.scale, dtype, early)
    return log_p


def chunks(hidden: Tensor, tokens: Tensor, head: Head) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield rows, log-probs (C,) and residuals (C, V) float32 of each chunk of at most CHUNK tokens; no gradient.

    The residual is the gradient of a token's log-prob with respect to W x + b: scale (1_token - softmax(l)), with
    softcap times 1 - (l/softcap)^2. So that of all log-probs with respect to W is the sum over chunks of
    residual' @ hidden. The arguments are those of `log_probs`, hidden and weight of one dtype.
    """
    for start in range(0, len(tokens), CHUNK):
        rows = slice(start, start + CHUNK)
        logits = head.logits(hidden[rows])
        log_p = torch.log_softmax(logits, dim=1)
        picked = log_p.gather(1, tokens[rows, None])
        residual = log_p.exp_().neg_()
        residual.scatter_add_(1, tokens[rows, None], torch.ones_like(picked))
        if head.softcap is not None:
            residual *= 1 - (logits / head.softcap).square()
        if head.scale != 1:
            residual *= head.scale
        del log_p, logits
        yield rows, picked[:, 0], residual


class _LogProbs(torch.autograd.Function):
    """`log_probs` with a backward pass of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        scale: float,
        dtype: torch.dtype,
        early: bool,
    ) -> Tensor:
        ctx.softcap, ctx.scale, ctx.dtype, ctx.early, ctx.of = softcap, scale, dtype, early, hidden.dtype
        x, w, b = _cast(dtype, hidden, weight, bias)
        head = Head(weight=w, bias=b, softcap=softcap, scale=scale)
        log_p = torch.empty(tokens.shape, dtype=torch.float32, device=hidden.device)
        if early:
            slopes = torch.empty_like(x)
            for rows, log_p[rows], residual in chunks(x, tokens, head):
                slopes[rows] = residual.to(dtype) @ w
            ctx.save_for_backward(slopes)
            return log_p
        for start in range(0, len(tokens), CHUNK):
            rows = slice(start, start + CHUNK)
            log_p[rows] = torch.log_softmax(head.logits(x[rows]), dim=1).gather(1, tokens[rows, None])[:, 0]
        ctx.save_for_backward(hidden, tokens, weight, bias)
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.early:
            (slopes,) = ctx.saved_tensors
            return (grad[:, None] * slopes).to(ctx.of), *[None] * 7
        hidden, tokens, weight, bias = ctx.saved_tensors
        x, w, b = _cast(ctx.dtype, hidden, weight, bias)
        head = Head(weight=w, bias=b, softcap=ctx.softcap, scale=ctx.scale)
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(tensor, dtype=torch.float32) if needed else None
            for tensor, needed in zip((hidden, weight, bias), (ctx.needs_input_grad[i] for i in (0, 2, 3)), strict=True)
        )
        for rows, _, residual in chunks(x, tokens, head):
            residual *= grad[rows, None]
            d = residual.to(ctx.dtype)
            if of_hidden is not None:
                of_hidden[rows] = (d @ w).float()
            if of_weight is not None and x.dtype == torch.float32:
                of_weight.addmm_(d.T, x[rows])
            elif of_weight is not None:
                of_weight += d.T @ x[rows]
            if of_bias is not None:
                of_bias += residual.sum(0)
        grads = (of_hidden, hidden), (of_weight, weight), (of_bias, bias)
        dh, dw, db = (None if g is None else g.to(of.dtype) for g, of in grads)
        return dh, None, dw, db, *[None] * 4


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]
