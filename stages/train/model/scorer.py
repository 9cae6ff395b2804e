"""Scores responses by a pass that was checked, on a few tokens, against the policy's own forward.

    model = load_scorer(folder, "float32")       bound, model.route.why for people
    score(model, rows)                           (z_w, z_l) of each pair
    bind_checked(model.eval(), "float32")        the check, of a model that is loaded

How the forward pass may compute a model is guessed from its configuration (`forward.routes`); no list of fields shows
what an architecture does with a mask, or with logits behind its head. So each guess is tried, and judged by the model's
own unmodified forward, one sequence at a time and attending eagerly: packed pairs first, then padded rows, then padded
rows with all logits of the model's own forward, which takes more memory. The logits' scale is read off that forward.

It takes complete weights: not under ZeRO-3, which gets the route instead.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparring.stages.digests import installed
from sparring.stages.errors import DataError
from sparring.stages.fingerprint import digest
from sparring.stages.step import Job, sha256_file
from sparring.stages.train.batch.collate import collate
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.memory import out_of_memory
from sparring.stages.train.model.adapter import load_base
from sparring.stages.train.model.forward import Bound, Route, bind, decoder, forward, routes, softcap

log = logging.getLogger(__name__)
PASS_TOKENS = 2048
"""Most tokens of a forward pass, padding included."""
TOLERANCE = 1e-4
"""Nats a token between a pass and the model's own forward."""
ROUNDING = 10.0
"""Times the nats a token that rounding makes of the model's own forward, where those are more."""
MOST_ROUNDING = 1e-2
"""Nats a token that never count as rounding in float32."""
LENGTHS = ((5, 6, 3), (2, 1, 8))
"""Tokens of prompt, chosen and rejected response of each pair."""
BEHIND = 2
"""Prompts put behind a sequence, on which no log-prob of a causal model depends."""
DIGITS = 7
"""Of the scale of logits: those of float32, so that it is the same number wherever it is measured."""


class Scored(NamedTuple):
    """What a route depends on, beside code and device."""

    policy: str
    """Digest of its files."""
    dtype: str
    four_bit: bool


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the model's own forward gives."""

    rows: Sequence[ResponsePair]
    z: Tensor
    """(2B,) float64, summed log-probs, chosen responses first."""
    rounding: float
    """Nats a token."""
    scale: float
    """Logits over those of the head, before softcap."""


def load_scorer(folder: Path, dtype: str, four_bit: bool = False) -> Bound:
    """Return the policy in a folder with fp32 weights, bound to score responses in `dtype`, on the GPU if any.

    The route was checked against its own forward; where it is not the fastest one, a warning is logged.
    """
    model = load_base(folder, four_bit)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bound = bind_checked(model.eval().to(device), dtype)
    if bound.route.why:
        log.warning(bound.route.why)
    return bound


def write_route(job: Job, scoring: Scored, route: Route) -> None:
    """Leave a policy's checked route among the run's logs: a training on that policy need not load it to check it."""
    path = _route_file(job, scoring)
    with suppress(OSError):  # it saves time alone
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(route)), encoding="utf-8")
        temporary.replace(path)


def read_route(job: Job, scoring: Scored) -> Route | None:
    """Return the route that was checked with the same code in this run; None where there is none."""
    try:
        return Route(**json.loads(_route_file(job, scoring).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _route_file(job: Job, scoring: Scored) -> Path:
    code = [sha256_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    versions = installed(("torch", "transformers", "flash-attn"))
    name = digest([*scoring, torch.cuda.is_available(), code, versions])
    return job.scratch / f"route-{name[:16]}.json"


def score(model: Bound, rows: Sequence[ResponsePair]) -> list[tuple[float, float]]:
    """Return (z_w, z_l) of each row, in the order of the rows."""
    scores: list[tuple[float, float]] = [(0.0, 0.0)] * len(rows)
    device, limit, flat = next(model.parameters()).device, model.shared_up_to, model.flat
    apart = [row.tokens if flat else 2 * row.length for row in rows]
    sizes = [row.shared_length if row.length <= limit else size for row, size in zip(rows, apart, strict=True)]
    for indices in passes(sizes):
        batch = collate([rows[i] for i in indices], (), "mean", limit, flat)
        with torch.no_grad():
            z, _ = forward(model, {name: tensor.to(device) for name, tensor in batch.items()})
        for i, z_w, z_l in zip(indices, *z.view(2, -1).tolist(), strict=True):
            scores[i] = (z_w, z_l)
    return scores


def passes(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield indices of pairs of similar size in tokens, at most PASS_TOKENS per pass, at least one pair."""
    current: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        if current and (len(current) + 1) * sizes[i] > PASS_TOKENS:
            yield current
            current = []
        current.append(i)
    if current:
        yield current


def bind_checked(model: nn.Module, dtype: str) -> Bound:
    """Bind a model in eval mode by the first route that agrees with its own forward; DataError where none does.

    Passes are compared in float32, those of flash-attn, which has none, in `dtype`.
    """
    config: Any = model.config
    longest = max(prompt + max(responses) for prompt, *responses in LENGTHS)
    guesses = [route for route in routes(model, dtype) if route.shared_up_to == 0 or route.shared_up_to >= longest]
    with torch.no_grad():
        try:
            truth = _truth(model)
        except Exception as error:
            raise DataError(
                f"{config.model_type}: its own forward pass {_reason(error)}; choose a policy that transformers "
                "runs on tokens alone."
            ) from error
        tried = [replace(route, scale=truth.scale) for route in guesses]
        tried += [replace(route, own_logits=True) for route in guesses if not route.packs]
        wrong: list[str] = []
        for route in tried:
            fault = _fault(model, route, dtype, truth)
            if not fault:
                why = f"{config.model_type}: scored {_described(route)} because {'; '.join(wrong)}" if wrong else ""
                return bind(model, dtype, replace(route, why=why))
            wrong.append(f"{_described(route)} {fault}")
    raise DataError(
        f"{config.model_type}: no pass of the trainer gives the log-probs of this policy's own forward: "
        f"{'; '.join(wrong)}; choose a policy of another architecture."
    )


def _described(route: Route) -> str:
    if route.packs:
        return "in sequences without padding" if route.flat else "in packed pairs"
    rows = f"in padded rows ({route.attention} attention)"
    return f"{rows} from all logits, which takes more memory" if route.own_logits else rows


def _fault(model: nn.Module, route: Route, dtype: str, truth: Truth) -> str:
    """Return what is wrong with a route's pass, "" where it differs from the truth by no more than rounding."""
    layouts = {route.shared_up_to, 0}  # rows that are longer than that stand in padded rows
    limit = max(TOLERANCE, min(MOST_ROUNDING, ROUNDING * truth.rounding))
    try:
        if route.flat:
            limit = max(limit, ROUNDING * _per_token(_own_log_probs(model, truth.rows, dtype)[0] - truth.z, truth.rows))
        bind(model, dtype if route.flat else "float32", route)
        off, device = 0.0, next(model.parameters()).device
        for shared in layouts:
            batch = collate(truth.rows, (), "mean", shared, route.flat)
            z, _ = forward(model, {name: tensor.to(device) for name, tensor in batch.items()})
            off = max(off, _per_token(z.cpu() - truth.z, truth.rows))
    except Exception as error:
        return f"it {_reason(error)}"
    return "" if off <= limit else f"it is off by {off:.2g} nats a token"


def _reason(error: Exception) -> str:
    """Name an error that a model raised; raise again one that is not of the model."""
    if out_of_memory(error):
        raise error
    lines = str(error).strip().splitlines()
    return f"fails ({': '.join([type(error).__name__, *lines[:1]])})"


def _per_token(difference: Tensor, rows: Sequence[ResponsePair]) -> float:
    lengths = torch.tensor([len(row.chosen) for row in rows] + [len(row.rejected) for row in rows])
    return float((difference.abs() / lengths).nan_to_num(math.inf).max())


def _truth(model: nn.Module) -> Truth:
    config: Any = model.config
    vocabulary, generator = config.get_text_config().vocab_size, torch.Generator().manual_seed(0)
    rows = []
    for i, lengths in enumerate(LENGTHS):
        prompt, chosen, rejected = (torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths)
        rows.append(ResponsePair(id=str(i), prompt=prompt, chosen=chosen, rejected=rejected))
    z, passes = _own_log_probs(model, rows, "float32")
    prompt, response = _sequences(rows)[-1]
    longer = _own_forward(model, prompt + response + prompt * BEHIND, "float32")
    moved = abs(z[-1].item() - _log_prob(longer.logits, prompt, response))
    return Truth(rows=rows, z=z, rounding=moved / len(response), scale=_scale(model, passes))


def _sequences(rows: Sequence[ResponsePair]) -> list[tuple[list[int], list[int]]]:
    return [(row.prompt, row.chosen) for row in rows] + [(row.prompt, row.rejected) for row in rows]


def _own_log_probs(model: nn.Module, rows: Sequence[ResponsePair], dtype: str) -> tuple[Tensor, list[OwnForward]]:
    """Score the rows by the model's own forward in `dtype`, attending eagerly, each sequence alone."""
    bind(model, dtype, Route(attention="eager", own_logits=True))
    sequences = _sequences(rows)
    passes = [_own_forward(model, prompt + response, dtype) for prompt, response in sequences]
    z = [_log_prob(one.logits, *sequence) for one, sequence in zip(passes, sequences, strict=True)]
    return torch.tensor(z, dtype=torch.float64), passes


@dataclass(frozen=True, kw_only=True)
class OwnForward:
    """The model's own forward over T tokens."""

    logits: Tensor
    """(T, V) float32."""
    hidden: Tensor | None
    """(T, H), what its base model returned; None where it has none apart from itself."""


def _own_forward(model: Any, ids: Sequence[int], dtype: str) -> OwnForward:
    seen: list[Tensor] = []
    handle = decoder(model).register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    try:
        tokens = torch.tensor([ids], device=next(model.parameters()).device)
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = type(model).forward(model, input_ids=tokens, use_cache=False).logits[0]
    finally:
        handle.remove()
    return OwnForward(logits=logits.float(), hidden=seen[0][0] if seen else None)


def _log_prob(logits: Tensor, prompt: Sequence[int], response: Sequence[int]) -> float:
    """Return log p(response | prompt) in nats. logits: (T, V) of the tokens of both, or of more behind them."""
    rows = torch.log_softmax(logits.double(), dim=1)[len(prompt) - 1 :]
    return sum(rows[i, token].item() for i, token in enumerate(response))


def _scale(model: Any, passes: Sequence[OwnForward]) -> float:
    """Return the factor by which logits before softcap are those of the head, by least squares; 1 where none fits."""
    output, cap = model.get_output_embeddings(), softcap(model)
    if type(output) is not nn.Linear or any(one.hidden is None for one in passes):
        return 1.0
    logits = torch.cat([one.logits for one in passes]).double()
    heads = torch.cat([output(one.hidden) for one in passes]).double()
    if cap is not None:
        unsaturated = logits.abs() < 0.9 * cap
        logits, heads = cap * torch.atanh(logits[unsaturated] / cap), heads[unsaturated]
    factor = ((heads * logits).sum() / heads.square().sum()).item()
    return float(f"{factor:.{DIGITS}g}") if math.isfinite(factor) and factor > 0 else 1.0
