"""The one forward pass that scores responses, shared by reference and training.

    model = bind(AutoModelForCausalLM.from_pretrained(folder), "float32")
    z, states = forward(model, collate(rows, end_of_turn, "mean", model.shared_up_to, model.flat))

The language-model head runs at the response positions only, in chunks of them: logits of prompts and padding never
exist, nor do those of a full batch. `bind` puts the pass in the place of the module's own `forward`, so that calling
a DeepSpeed engine around the module runs it with ZeRO-3's gathering hooks. Not used: the models' `logits_to_keep`,
which keeps the same positions in all rows.

How the pass computes an architecture is guessed from its configuration, and checked against the model's own forward
in scorer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils import is_flash_attn_2_available

from sparring.stages.train.model import attention, lm_head
from sparring.stages.train.model.hidden_states import Reading

NAMES = (
    "input_ids",
    "position_ids",
    "attention_mask",
    "lengths",
    "predictors",
    "positions",
    "response_mask",
    "pool_weights",
)
"""What the pass takes of a batch."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """How the pass computes a model."""

    attention: str
    """transformers' name of the attention implementation."""
    shared_up_to: int = 0
    """Tokens up to which both responses of a pair follow one copy of their prompt; 0: never."""
    flat: bool = False
    """Whether sequences stand one after another, without padding."""
    scale: float = 1.0
    """The model's logits over those of its head, before softcap."""
    own_logits: bool = False
    """Log-probs from all logits of the model's own forward: for a model that computes them by more than its head."""
    why: str = field(default="", compare=False)
    """A message for people: what a faster route does wrong."""

    @property
    def packs(self) -> bool:
        """Whether tokens stand without padding."""
        return self.flat or self.shared_up_to > 0


class Bound(nn.Module):
    """For type checkers: what `bind` makes of a model of any class."""

    route: Route
    scoring_dtype: torch.dtype
    shared_up_to: int
    flat: bool


def bind(model: nn.Module, dtype: str, route: Route | None = None) -> Bound:
    """Make `model(**batch)` score responses, computing in `dtype` (float32 or bfloat16) on weights as they are.

    bfloat16 is autocast: weights and optimizer stay fp32, so that small steps are not rounded away. `route` is
    by default the first of `routes`. Sets `model.route`, and `model.shared_up_to` and `model.flat` for `collate`.
    """
    bound: Any = model
    route = route or routes(model, dtype)[0]
    bound.scoring_dtype, bound.route = getattr(torch, dtype), route
    bound.shared_up_to, bound.flat = route.shared_up_to, route.flat
    if bound.config._attn_implementation != route.attention:
        bound.set_attn_implementation(route.attention)
    output = bound.get_output_embeddings()
    if route.own_logits:
        output.__dict__.pop("forward", None)  # logits again, whatever the head is
    else:
        lm_head.chunked(output, softcap(model), route.scale)
    bound.forward = MethodType(_score, model)
    return cast(Bound, bound)


def softcap(model: nn.Module) -> float | None:
    """Bound of the logits, in nats; None without one."""
    config: Any = model.config
    return getattr(config, "final_logit_softcapping", None)


def routes(model: nn.Module, dtype: str) -> list[Route]:
    """How the pass may compute a model, by its configuration, the fastest first.

    Gemma 2's attention caps its scores, which torch's fused attention cannot do and transformers' drops silently:
    attention.py computes them.
    """
    config: Any = model.config
    loaded = config._attn_implementation
    guesses = []
    if flash_runs(model, dtype) or loaded == attention.FLASH:
        guesses.append(Route(attention=attention.FLASH, flat=True))
    if shared := shared_up_to(model):
        guesses.append(Route(attention=attention.NAME, shared_up_to=shared))
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None:
        guesses.append(Route(attention="sdpa" if loaded in (attention.NAME, attention.FLASH) else loaded))
    return list(dict.fromkeys([*guesses, Route(attention="eager")]))


def shared_up_to(model: nn.Module) -> int:
    """Tokens up to which both responses of a pair may follow one copy of their prompt under a mask; 0: never.

    Only attention takes such a mask, in the form that `collate` gives it: that of `sdpa`, packed or not. A sliding
    window changes nothing for sequences that fit in it.
    """
    config: Any = model.config
    if not _attends(config) or getattr(config, "_attn_implementation", None) not in ("sdpa", attention.NAME):
        return 0
    return getattr(config, "sliding_window", None) or getattr(config, "max_position_embeddings", None) or 0


def flash_runs(model: nn.Module, dtype: str) -> bool:
    """Whether flash-attn computes this model's attention over sequences of any length without padding.

    It needs the package, a GPU and bfloat16, and a model that passes the sequences' ends to its attention function.
    """
    classes: Any = type(model)
    able = classes._supports_flash_attn and classes._supports_attention_backend and _attends(model.config)
    return bool(able and dtype == "bfloat16" and is_flash_attn_2_available())


def _attends(config: Any) -> bool:
    """Whether all layers are attention that knows a token by its position id."""
    named = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    layers = set(named or ["full_attention"])
    return layers <= {"full_attention", "sliding_attention"} and not getattr(config, "alibi", False)


def decoder(model: Any) -> Any:
    """Return the part of a model that gives the last hidden states."""
    return model.get_decoder() if model.base_model is model else model.base_model


def forward(model: nn.Module, batch: dict[str, Tensor], reading: Reading | None = None) -> tuple[Tensor, Tensor]:
    """Return z and pooled states of a batch of B pairs through a bound model or an engine around one.

    The batch is that of `collate`. z: (2B,) float64, summed log-probs in nats of exactly the response tokens given all
    tokens before them, chosen first; states: (2B, H) float32, the last hidden states, or those that `reading` names, at
    the tokens' own positions, pooled.
    """
    z, states = model(**{name: batch[name] for name in NAMES}, reading=reading)
    return z, states


def _score(
    self: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor,
    lengths: Tensor,
    predictors: Tensor,
    positions: Tensor,
    response_mask: Tensor,
    pool_weights: Tensor,
    reading: Reading | None = None,
) -> tuple[Tensor, Tensor]:
    bf16 = self.scoring_dtype == torch.bfloat16
    layout = attention.arguments(attention_mask, lengths)
    tokens = input_ids.flatten()[positions[response_mask]]
    where = predictors[response_mask]

    def trunk() -> Tensor:
        return decoder(self)(input_ids=input_ids, position_ids=position_ids, use_cache=False, **layout)[0]

    def own() -> Tensor:
        return type(self).forward(self, input_ids=input_ids, use_cache=False, **layout).logits

    # Under ZeRO-3 a cached cast would hold the full bf16 model, so the cache is off.
    with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False):
        if self.route.own_logits:
            logits, states = _with_states(self, own, reading)
            log_p = torch.log_softmax(logits.flatten(0, 1)[where].float(), dim=1)
            token_log_probs = log_p.gather(1, tokens[:, None])[:, 0]
        else:
            last, states = reading.through(trunk) if reading else (trunk(),) * 2
            token_log_probs = self.get_output_embeddings()(last.flatten(0, 1)[where], tokens)
    rows = torch.zeros(response_mask.shape, dtype=torch.float64, device=tokens.device)
    z = rows.masked_scatter(response_mask, token_log_probs.double()).sum(1)
    return z, pool(states.flatten(0, 1)[positions], pool_weights)


def pool(states: Tensor, weights: Tensor) -> Tensor:
    """Pool (R, T, H) states with (R, T) weights into (R, H), in fp32."""
    return torch.einsum("rt,rth->rh", weights.float(), states.float())


def _with_states(model: Any, own: Callable[[], Tensor], reading: Reading | None) -> tuple[Tensor, Tensor]:
    """Return what `own` gives, and the states to pool: those that enter the head, or that `reading` names."""
    if reading and reading.module is not None:
        return reading.through(own)
    taken: list[Tensor] = []

    def enters_head(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        onward, states = reading.through(lambda: inputs[0]) if reading else (inputs[0],) * 2
        taken.append(states)
        return (onward, *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(enters_head)
    try:
        logits = own()
    finally:
        handle.remove()
    return logits, taken[0]
