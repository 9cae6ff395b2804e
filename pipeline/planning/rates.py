"""How fast a step is expected to be before the store holds a measured one like it: by the numbers of `hardware.expect`,
or by arithmetic on the data sheet of its accelerator (roofline.py). Each rate says how it is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparring.pipeline.config.model import Config
from sparring.pipeline.planning import roofline
from sparring.pipeline.planning.memory import BF16, Architecture
from sparring.pipeline.planning.plan import Plan, Step
from sparring.pipeline.planning.roofline import ACCELERATORS, DECODE, FORWARD, PAIRRM, TRAINING

GPUS_OF_NODE = 8
ENCODER_WEIGHTS = 10_600_000
"""Of MiniLM's six layers."""
JUDGE_BYTES = 1.7e9
"""PairRM in fp32; what other models of a step take to load is less."""
BY_POLICY = ("sample", "reference", "logprobs", "train")
"""Steps whose rate depends on the policy's size."""
FASTER = 4.0
"""A smaller policy is expected to do at most so many times the profile's tokens/s: then other things hold it up."""
MODELS = ("policy", "judge", "encoder")
"""Input roles that a step's workers load; `first.judge` is a judge too."""
ASSUMPTIONS = (
    "the engines' batch-invariant mode costs nothing (sampler.reproducible)",
    "a model stays loaded for the next step that needs it",
    "checkpoints are written beside the training",
)
"""What rates from a data sheet assume of the code. Each is left out when the code does it."""
ESTIMATED = "estimated: "
"""How `Rate.known` begins where it is arithmetic on a data sheet."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step has to do, in the mean."""

    prompt: float
    """Tokens of a prompt."""
    length: float
    """Tokens of a response."""
    tokens: float
    """Of the whole step."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Of one worker with one GPU, or of one worker without."""

    per_s: float
    unit: str
    known: str
    """Where the number comes from."""
    fixed_s: float = 0.0
    """Seconds of the step beside its units at this rate."""


UNITS = {"score": "ordered pairs", "embed": "responses"}
"""What a step's rate counts, where it is not tokens."""


def stated(step: Step, config: Config, weights: int) -> Rate | None:
    """Return the number of `hardware.expect`, scaled to a policy of so many weights; None where it has none."""
    expect, kind = config.hardware.expect, step.spec.kind
    number = {
        "sample": expect.sample_tokens_per_s,
        "score": expect.score_duels_per_s,
        "embed": expect.embed_responses_per_s,
        "reference": expect.reference_tokens_per_s,
        "logprobs": expect.reference_tokens_per_s,
        "train": expect.train_tokens_per_s,
    }.get(kind)
    if number is None:
        return None
    if kind in BY_POLICY and expect.parameters:
        number *= min(FASTER, expect.parameters / weights)
    known = f"hardware={config.hardware.name}, {expect.basis}"
    return Rate(per_s=number, unit=UNITS.get(kind, "tokens"), known=known)


def from_data_sheet(step: Step, config: Config, model: Architecture, work: Work) -> Rate | None:
    """Return what the accelerator's data sheet allows; None without one, and for steps that no model holds up."""
    name, kind = config.hardware.expect.accelerator, step.spec.kind
    if name is None:
        return None
    gpu, trainer, length = ACCELERATORS[name], config.trainer, work.prompt + work.length
    match kind:
        case "sample":
            gpus, k = max(1, step.workers.gpus), step.settings.sampler.k
            share = config.hardware.gpu_memory
            engine = roofline.sampling_tokens_per_s(gpu, model, work.prompt, work.length, k, gpus, share)
            batch = roofline.responses_at_once(gpu, model, work.prompt + work.length / 2, gpus, share)
            return Rate(
                per_s=engine / gpus,
                unit="tokens",
                known=f"{ESTIMATED}{name}, {batch:,} responses at once, {DECODE:.0%} of FLOP/s and memory's bytes/s",
                fixed_s=roofline.tail_s(gpu, model, config.sampler.max_tokens, gpus),
            )
        case "score" if step.settings.oracle.kind == "pairrm":
            dtype = "float32" if step.settings.oracle.options["dtype"] == "float32" else "bfloat16"
            tokens, share = work.prompt + 2 * work.length, PAIRRM[dtype]
            return Rate(
                per_s=roofline.pairrm_pairs_per_s(gpu, tokens, dtype),
                unit=UNITS[kind],
                known=f"{ESTIMATED}{name}, PairRM in {dtype}, {tokens:,.0f} tokens a pair, {share:.0%} of its FLOP/s",
            )
        case "embed":
            return Rate(
                per_s=roofline.embed_responses_per_s(gpu, work.length, ENCODER_WEIGHTS),
                unit=UNITS[kind],
                known=f"{ESTIMATED}{name}, MiniLM in fp32, {roofline.ENCODER:.0%} of its FLOP/s",
            )
        case "reference" | "logprobs":
            return Rate(
                per_s=roofline.scoring_tokens_per_s(gpu, model, length),
                unit="tokens",
                known=f"{ESTIMATED}{name}, 2 FLOP a weight and token, {FORWARD:.0%} of FLOP/s",
            )
        case "train":
            flops, workers = 8 if trainer.gradient_checkpointing else 6, max(1, step.workers.count)
            per_s = roofline.training_tokens_per_s(gpu, model, length, trainer.gradient_checkpointing)
            products_s = 2 * length * trainer.global_batch / workers / per_s
            link = gpu.link_bytes_per_s if workers <= GPUS_OF_NODE else roofline.NETWORK
            waits_s = max(0.0, roofline.zero3_s(model, workers, link) - products_s)
            steps = work.tokens / (2 * length * trainer.global_batch)
            return Rate(
                per_s=per_s,
                unit="tokens",
                known=f"{ESTIMATED}{name}, {flops} FLOP a weight and token, {TRAINING:.0%} of FLOP/s, an MFU of "
                f"{6 / flops * TRAINING:.1%}; torchtitan publishes 33 to 39% for Llama-3.1-8B on 8 H100",
                fixed_s=steps * waits_s + roofline.loading_s(BF16 * model.weights),
            )
    return None


def starts(plan: Plan, weights: Mapping[str, int]) -> dict[str, float]:
    """Return the step -> seconds until its workers have loaded, in the plan's order; weights: of each arm's policy.

    A pool's processes start when another pool was at work before; a model is loaded where the step before had another.
    """
    seconds: dict[str, float] = {}
    pool, loaded = "", tuple[str, ...]()
    for name, step in plan.steps.items():
        kind = "train" if step.spec.run else step.spec.pool
        if kind not in roofline.STARTS:
            continue
        models = tuple(sorted(source for role, source in step.inputs.items() if role.rpartition(".")[2] in MODELS))
        size = BF16 * weights[step.uses[0].arm] if "policy" in step.inputs else JUDGE_BYTES
        seconds[name] = roofline.STARTS[kind] if kind != pool else 0.0
        seconds[name] += roofline.loading_s(size) if models != loaded or kind != pool else 0.0
        pool, loaded = kind, models
    return seconds


def workers_of(step: Step, gpus: Sequence[int]) -> int:
    """Return how many GPUs, or workers without one, work side by side: as the step says, or as the GPUs hold."""
    each = max(1, step.workers.gpus)
    return (step.workers.count or sum(count // each for count in gpus) or 1) * each
