"""Writes docs/scale.md: what an iteration takes on large machines, each stage beside its physical limit, out of the
arithmetic of pipeline/planning/roofline.py.

python -m scripts.scale           writes the page; a test says when it is not current
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sparring.pipeline.planning import roofline
from sparring.pipeline.planning.memory import BF16, FP32, GIB, MOMENTS, Architecture
from sparring.pipeline.planning.rates import ASSUMPTIONS, GPUS_OF_NODE, JUDGE_BYTES

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
H100 = roofline.ACCELERATORS["h100"]
PROMPTS, K, PROMPT, LENGTH, LONGEST, BATCH = 20_000, 5, 128, 512, 2048, 64
"""The published iteration: prompts, responses to each, tokens of both, longest response, pairs of an optimizer step."""
LLAMA_8B = Architecture(
    weights=8_030_261_248,
    layers=32,
    hidden=4096,
    intermediate=14336,
    vocabulary=128256,
    heads=32,
    q_width=4096,
    kv_width=1024,
    eager=False,
)
LLAMA_70B = replace(
    LLAMA_8B, weights=70_553_706_496, layers=80, hidden=8192, intermediate=28672, heads=64, q_width=8192
)
PER_NODE = 50e9
"""Bytes/s of a node with one port of 400 Gb/s."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where an iteration runs."""

    title: str
    model: Architecture
    gpus: int
    engine_gpus: int = 1
    """GPUs of a sampling engine, and over which log-probs split the weights."""


MACHINES = (
    Machine(title="8 H100, Llama-3-8B", model=LLAMA_8B, gpus=8),
    Machine(title="64 H100, Llama-3-8B", model=LLAMA_8B, gpus=64),
    Machine(title="64 H100, Llama-3-70B", model=LLAMA_70B, gpus=64, engine_gpus=8),
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Seconds of one stage."""

    name: str
    bound: str
    """What it can never be faster than."""
    limit_s: float
    """At all of the data sheet's FLOP/s or bytes/s."""
    planned_s: float


def stages(machine: Machine) -> Iterator[Stage]:
    """Yield the stages of an iteration with what they take at the limit and with the efficiencies of roofline.py."""
    model, gpus, each = machine.model, machine.gpus, machine.engine_gpus
    context = PROMPT + LENGTH / 2
    batch = roofline.responses_at_once(H100, model, context, each, 0.9)
    products = 2 * model.weights * batch / H100.flops
    weights = BF16 * model.weights / H100.memory_bytes_per_s
    read = batch * context * roofline.kv_bytes(model) / H100.memory_bytes_per_s
    tokens = PROMPTS * K * LENGTH
    engine = roofline.sampling_tokens_per_s(H100, model, PROMPT, LENGTH, K, each)
    yield Stage(
        name="sample",
        bound=f"{'FLOP/s' if products > weights else 'weights'} and keys read, {batch:,} responses at once",
        limit_s=tokens / gpus * (max(products, weights) + read) / batch,
        planned_s=tokens * each / gpus / engine + roofline.tail_s(H100, model, LONGEST, each),
    )
    pairs, pair = PROMPTS * K * (K - 1), PROMPT + 2 * LENGTH
    yield Stage(
        name="score (PairRM, bf16)",
        bound=f"{roofline.pairrm_flops(pair) / 1e12:.2f} TFLOP an ordered pair",
        limit_s=pairs * roofline.pairrm_flops(pair) / H100.flops / gpus,
        planned_s=pairs / roofline.pairrm_pairs_per_s(H100, pair, "bfloat16") / gpus,
    )
    read_tokens, sequence = 2 * PROMPTS * (PROMPT + LENGTH), PROMPT + LENGTH
    forward = read_tokens * roofline.forward_flops(model, sequence) / H100.flops / gpus
    yield Stage(
        name="reference",
        bound="FLOP/s, 2 a weight and token",
        limit_s=forward,
        planned_s=read_tokens / roofline.scoring_tokens_per_s(H100, model, sequence) / gpus,
    )
    link = H100.link_bytes_per_s if gpus <= GPUS_OF_NODE else roofline.NETWORK
    moved = PROMPTS / BATCH * roofline.zero3_s(model, gpus, link)
    computed = read_tokens / roofline.training_tokens_per_s(H100, model, sequence, True) / gpus
    bounds = {"FLOP/s, 8 a weight and token": 4 * forward, "ZeRO-3's 8 bytes a weight and step": moved * roofline.LINK}
    bound = max(bounds, key=lambda name: bounds[name])
    yield Stage(name="train", bound=bound, limit_s=bounds[bound], planned_s=max(computed, moved))
    size = BF16 * model.weights
    starts = [roofline.STARTS[kind] for kind in ("engines", "engines", "annotators", "annotators", "train")]
    yield Stage(
        name="starts and loading",
        bound="the policy read five times",
        limit_s=5 * size / each / roofline.LOADING,
        planned_s=sum(starts) + 5 * roofline.loading_s(size / each) + roofline.loading_s(JUDGE_BYTES),
    )


def table(machine: Machine) -> str:
    """Return the table of a machine, with its sum."""
    rows = list(stages(machine))
    whole = Stage(
        name="**all, one after another**",
        bound="",
        limit_s=sum(row.limit_s for row in rows),
        planned_s=sum(row.planned_s for row in rows),
    )
    lines = [
        f"| {row.name} | {row.bound} | {row.limit_s:,.0f} | {row.planned_s:,.0f} | {row.limit_s / row.planned_s:.0%} |"
        for row in (*rows, whole)
    ]
    return "\n".join(["| stage | bound by | limit, s | planned, s | of the limit |", "|---|---|---|---|---|", *lines])


def page() -> str:
    """Return the page."""
    parts = [
        "# Scale",
        _wrapped(
            "What one iteration takes on machines that nobody has run it on: **every figure is arithmetic, none is "
            "measured**. The limit is what the GPU's data sheet allows; planned is what `sparring plan` uses, with the "
            "efficiencies stated in `pipeline/planning/roofline.py`. `sparring profile` measures a machine's own "
            "rates, `make bench-gpu` those of one card."
        ),
        _wrapped(
            f"The iteration is the published one: {PROMPTS:,} prompts of {PROMPT} tokens, K={K} responses of {LENGTH} "
            f"tokens in the mean and {LONGEST:,} at most, all ordered pairs judged by PairRM, {BATCH} pairs an "
            "optimizer step."
        ),
        _wrapped(f"Planned seconds assume: {'; '.join(ASSUMPTIONS)}."),
        *(f"## {machine.title}\n\n{table(machine)}" for machine in MACHINES),
        "## What the tables say",
        "\n".join(_wrapped(f"- {one}", "  ") for one in _remarks()),
        _wrapped("The driver's own cost with 8, 16 and 32 workers is measured by `python -m benchmarks.scale`."),
        "This page is written by `python -m scripts.scale`; do not edit it.",
    ]
    return "\n\n".join(parts) + "\n"


def _remarks() -> Iterator[str]:
    small, large, link = LLAMA_8B, LLAMA_70B, roofline.NETWORK
    alone, on_eight = roofline.tail_s(H100, small, LONGEST), roofline.tail_s(H100, large, LONGEST, 8)
    yield (
        f"**Sampling** waits for products when {roofline.MOST_RESPONSES:,} responses are decoded at once; the rest of "
        "its time reads keys and values. More GPUs shorten all of it but the last response, which an engine decodes "
        f"alone: {alone:.0f} s for {LONGEST:,} tokens of 8 billion weights, {on_eight:.0f} s of 70 billion on 8 GPUs."
    )
    computed = 2 * BATCH * (PROMPT + LENGTH) / roofline.training_tokens_per_s(H100, small, PROMPT + LENGTH, True)
    ports, port = roofline.zero3_s(small, 64, link), roofline.zero3_s(small, 16, PER_NODE)
    yield (
        "**Training over several nodes** moves 8 bytes a weight and step between them, whatever the batch. With a port "
        f"of 400 Gb/s for each GPU that takes {ports:.2f} s of 8 billion weights. With one port a node it takes "
        f"{port:.1f} s on two nodes, where the products take {computed / 16:.2f} s: one node, at {computed / 8:.2f} s "
        "a step, is faster then. A larger batch divides it."
    )
    states = (2 * FP32 + MOMENTS["rmsprop"]) * large.weights / GIB
    yield (
        f"**70 billion weights**: fp32 weights, gradients and one moment are {states:,.0f} GiB, {states / 64:.0f} GiB "
        f"a GPU on 64, and {states / 8:.0f} GiB on 8, which do not fit. The step `reference` holds all weights on one "
        "GPU today, and the plan refuses it; the table splits them over 8. A policy is "
        f"{BF16 * large.weights / GIB:.0f} GiB, a checkpoint {8 * large.weights / GIB:.0f} GiB."
    )
    yield (
        "**Starts** do not shrink with the number of GPUs: on 64 they take longer than sampling. Steps that run side "
        "by side hide them; the sums here count them one after another."
    )


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()
