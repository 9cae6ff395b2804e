"""What each GPU and each host must hold in the heavy steps of a plan, in bytes: what cannot fit is refused before hours
are spent.

Arithmetic on the policy's architecture, no measurement; what it leaves out (fragments, kernels' workspaces) is in
OVERHEAD. P weights, W training workers, T tokens of a forward pass, H hidden size, I intermediate size, L layers,
V vocabulary.

    training      of each weight a worker's share, P/W: 4 bytes of the weight, 4 of its gradient, what the optimizer
                  keeps (MOMENTS), and while the engine is made 4 of a second fp32 copy; then, of the forward pass,
                  what is gathered of the others' shares, what L layers keep (with gradient checkpointing: the inputs of
                  L layers, and one layer computed again), and a chunk of logits
    log-probs     P weights in fp32, the inputs of one layer, a chunk of logits
    sampling      P weights in the policy's dtype and the keys and values of one response at its longest, over the GPUs
                  of an engine (tensor parallel)

Without GPUs a host holds the same. Beside GPUs it holds P weights in fp32 while a process of log-probs, or a training's
first rank, reads the policy; and of a training what hardware.offload moves there.

Beside a measured peak (VmHWM; 135M weights, fp32, AdamW, one worker, passes of 4 pairs of 192 + 64 tokens, no
checkpointing, two cores): 7.4 GiB for 5.8 GiB, 1.27 times; 1.05 times with the prompt, which a pair shares and training
computes once, counted once.

Sources: ZeRO, arXiv 1910.02054 section 3; activations, arXiv 2205.05198 section 4.1; DeepSpeed's own estimate of the
states, without activations, is `estimate_zero3_model_states_mem_needs`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from sparring.pipeline.config.model import Config
from sparring.pipeline.planning.placement import Node, processes_on
from sparring.pipeline.planning.plan import Plan
from sparring.pipeline.sources import hub
from sparring.stages.errors import ConfigError
from sparring.stages.model_folder import read_json
from sparring.stages.sample.config import EngineSampler
from sparring.stages.step import Workers
from sparring.stages.train.config import Adapter

GIB = 2**30
FP32, BF16 = 4, 2
MOMENTS = {"rmsprop": 4, "adamw": 8, "adamw_8bit": 2}
"""Optimizer -> bytes that it keeps for a weight."""
LIVE = 500_000_000
"""Weights that ZeRO-3 keeps gathered at most (stage3_max_live_parameters of trainer/arguments.py)."""
CHUNK = 512
"""Tokens whose logits exist at the same time (train/model/lm_head.py)."""
LOGITS = 3
"""fp32 copies of a chunk of logits in its backward pass: logits, their softmax, their gradient."""
OVERHEAD = 1.5 * GIB
"""Of a process on a GPU: CUDA's context, libraries, NCCL's buffers."""


ENGINE_OVERHEAD = 3 * GIB
"""Of a sampling engine beside that: activations of a batch of 8,192 tokens, CUDA graphs."""
PROCESS = 1.0 * GIB
"""Of a process on a host: Python, torch, transformers, DeepSpeed."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the memory of a decoder depends on."""

    weights: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    q_width: int
    """Numbers that a token's queries have in a layer: heads times their size."""
    kv_width: int
    """Likewise its keys, and as many its values."""
    eager: bool
    """Its attention caps its scores: all scores of a sequence exist at the same time."""

    @property
    def kv_bytes(self) -> int:
        """Of the keys and values of a token in bf16."""
        return 2 * BF16 * self.layers * self.kv_width

    def low_rank(self, rank: int) -> int:
        """Return the weights of an adapter of this rank on all linear layers but the head."""
        attention = 2 * (self.hidden + self.q_width) + 2 * (self.hidden + self.kv_width)
        return self.layers * rank * (attention + 3 * (self.hidden + self.intermediate))


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings that the memory of a training depends on."""

    workers: int
    optimizer: str
    offload: str = "none"
    """none, optimizer, or all: as hardware.offload."""
    micro_batch: int = 1
    """Pairs in a forward pass."""
    max_length: int
    """Tokens of a prompt and a response."""
    dtype: str = "bfloat16"
    checkpointing: bool = True
    """Whether layers are computed again in the backward pass, and keep their inputs alone until then."""
    rank: int = 0
    """Of the adapter; 0: all weights are trained."""
    four_bit: bool = False


COUNTS = {"sample": "hardware.engines", "reference": "hardware.annotators"}
"""Step -> the key of how many of its processes there are, each with all that it holds."""
OFFLOADED = "offload less (hardware.offload), spread the training's workers over more machines, "
LARGER = "take a smaller policy, or machines with more memory"
KINDS = {"reference": {"reference", "logprobs"}}
"""Step -> the kinds of steps that need the same, where there are several."""
Need = dict[str, float]
"""What it is for -> bytes of one GPU."""


def architecture(config: Mapping[str, Any], weights: int) -> Architecture | None:
    """Read a policy's config.json; None where it lacks what every decoder has."""
    text = {**config, **(config.get("text_config") or {})}
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads")
    if not all(isinstance(text.get(key), int) and text[key] > 0 for key in keys):
        return None
    layers, hidden, intermediate, vocabulary, heads = (int(text[key]) for key in keys)
    size = text.get("head_dim") or hidden // heads
    return Architecture(
        weights=weights,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        vocabulary=vocabulary,
        heads=heads,
        q_width=heads * size,
        kv_width=size * (text.get("num_key_value_heads") or heads),
        eager=text.get("attn_logit_softcapping") is not None,
    )


def training(model: Architecture, chosen: Training) -> Need:
    """Return what one of the training workers holds at its peak."""
    trained = model.low_rank(chosen.rank) if chosen.rank else model.weights
    frozen = model.weights if chosen.rank else 0
    head, share = model.vocabulary * model.hidden, 1 / chosen.workers
    linear = max(0, model.weights - 2 * head) if chosen.four_bit else 0  # in 4 bits, whole on every worker
    on_gpu = chosen.offload == "none"
    states = {
        "weights": 0 if chosen.offload == "all" else FP32 * share * (trained + frozen - linear),
        "gradients": FP32 * share * trained if on_gpu else 0,
        "optimizer": MOMENTS[chosen.optimizer] * share * trained if on_gpu else 0,
        "4-bit weights": 0.5 * linear,
        "CUDA": OVERHEAD,
    }
    largest = head  # the embedding, or the head
    tokens = 2 * chosen.micro_batch * chosen.max_length
    layer = _layer(model, tokens, chosen.max_length, chosen.dtype)
    passing = {
        "gathered weights": FP32 * max(min(LIVE, model.weights), largest)
        + largest * ((BF16 if chosen.dtype == "bfloat16" else 0) + (0 if chosen.rank else FP32)),
        "activations": FP32 * model.layers * tokens * model.hidden + layer
        if chosen.checkpointing
        else model.layers * layer,
        "logits": LOGITS * FP32 * CHUNK * model.vocabulary,
    }
    copy = FP32 * share * trained if on_gpu else 0  # until memory.one_copy lets it go
    if copy > sum(passing.values()):
        return _known({**states, "second copy at the start": copy})
    return _known({**states, **passing})


def scoring(model: Architecture, max_length: int, dtype: str, four_bit: bool = False) -> Need:
    """Return what a process of reference or logprobs holds: the policy whole, and a pass over one pair."""
    head = model.vocabulary * model.hidden
    linear = max(0, model.weights - 2 * head) if four_bit else 0
    return _known(
        {
            "weights": FP32 * (model.weights - linear),
            "4-bit weights": 0.5 * linear,
            "activations": _layer(model, 2 * max_length, max_length, dtype),
            "logits": 2 * FP32 * CHUNK * model.vocabulary + (BF16 * head if dtype == "bfloat16" else 0),
            "CUDA": OVERHEAD,
        }
    )


def sampling(model: Architecture, gpus: int, longest: int, dtype: str) -> Need:
    """Return what one GPU of a sampling engine of `gpus` holds at least: with one response in flight."""
    size = FP32 if dtype == "float32" else BF16
    return _known(
        {
            "weights": size * model.weights / gpus,
            "keys and values": model.kv_bytes * (size / BF16) * longest / gpus,
            "CUDA": OVERHEAD + ENGINE_OVERHEAD,
        }
    )


def _layer(model: Architecture, tokens: int, length: int, dtype: str) -> float:
    """What one layer keeps for its backward pass: residuals and norms in fp32, what linear layers read in `dtype`."""
    size = BF16 if dtype == "bfloat16" else FP32
    widths = model.hidden + model.q_width + model.kv_width + model.intermediate
    scores = tokens * model.heads * length * (FP32 + size) if model.eager else 0
    return tokens * (5 * FP32 * model.hidden + 4 * size * widths) + scores


def _known(need: Need) -> Need:
    return {name: size for name, size in need.items() if size}


def of_policy(plan: Plan, arm: str, weights: int, ask_hub: bool = False) -> Architecture:
    """Return the architecture of an arm's policy; only its weights where its config.json cannot be read.

    ask_hub: have the hub give that file of a policy that is not downloaded yet.
    """
    settings = plan.base_policy(arm)
    path = settings.root / "config.json" if settings else None
    if settings and settings.wanted and ask_hub and find_spec("huggingface_hub"):
        path = hub.model_config(*settings.wanted[1:])
    known = architecture(read_json(path), weights) if path and os.path.isfile(path) else None
    return known or Architecture(
        weights=weights, layers=0, hidden=0, intermediate=0, vocabulary=0, heads=0, q_width=0, kv_width=0, eager=False
    )


def needs_of(config: Config, model: Architecture) -> dict[str, Need]:
    """Return the step -> need of a GPU, of the steps that hold the policy on GPUs: sample, reference, train."""
    hardware, trainer, sampler = config.hardware, config.trainer, config.sampler
    needs = {}
    if isinstance(sampler, EngineSampler) and hardware.engine_gpus:
        longest = config.prompts.max_tokens + sampler.max_tokens
        needs["sample"] = sampling(model, hardware.engine_gpus, longest, sampler.dtype)
    if hardware.annotator_gpus:
        needs["reference"] = scoring(model, longest_of(config), trainer.dtype, trainer.adapter.four_bit)
    if hardware.worker_gpus:
        needs["train"] = training(model, training_of(config))
    return needs


def host_needs_of(config: Config, model: Architecture) -> dict[str, Need]:
    """Return the step -> what one of its processes holds of its host's memory, at least.

    Of a training it is that of one pair a pass: where memory runs out, fewer pairs are tried.
    """
    hardware, trainer, sampler = config.hardware, config.trainer, config.sampler
    chosen = replace(training_of(config), micro_batch=1)
    longest = config.prompts.max_tokens + sampler.max_tokens
    needs = {
        "reference": scoring(model, longest_of(config), trainer.dtype, trainer.adapter.four_bit),
        "train": training(model, chosen),
    }
    if isinstance(sampler, EngineSampler):
        needs["sample"] = sampling(model, 1, longest, sampler.dtype)
        if sampler.engine == "vllm" and not hardware.engine_gpus:
            needs["sample"] = {"weights": needs["sample"]["weights"], "keys and values": hardware.kv_cache_gb * GIB}
    reading: Need = {"policy while it is read": FP32 * model.weights}
    if hardware.annotator_gpus:
        needs["reference"] = reading
    if hardware.worker_gpus:
        trained = model.low_rank(chosen.rank) if chosen.rank else model.weights
        share = FP32 * trained / chosen.workers
        states = {"weights": share, "gradients": share, "optimizer": MOMENTS[chosen.optimizer] * share / FP32}
        if chosen.rank and chosen.offload == "all":
            states["weights"] += FP32 * model.weights / chosen.workers
        moved = states if chosen.offload != "none" else {}
        needs["train"] = max(reading, moved, key=lambda need: sum(need.values()))
    if hardware.engine_gpus:
        needs.pop("sample", None)
    return {step: {**_without_cuda(need), "process": PROCESS} for step, need in needs.items()}


def _without_cuda(need: Need) -> Need:
    return {name: size for name, size in need.items() if name != "CUDA"}


def longest_of(config: Config) -> int:
    """Return the most tokens that a prompt and a response have in training."""
    return min(config.trainer.max_length, config.prompts.max_tokens + config.sampler.max_tokens)


def training_of(config: Config) -> Training:
    """Return what the memory of a configuration's training depends on; micro_batch=auto is one pair, the least."""
    hardware, trainer = config.hardware, config.trainer
    return Training(
        workers=hardware.workers or 1,
        optimizer=trainer.optimizer,
        offload=hardware.offload,
        micro_batch=1 if hardware.micro_batch == "auto" else hardware.micro_batch,
        max_length=longest_of(config),
        dtype=trainer.dtype,
        checkpointing=trainer.gradient_checkpointing,
        rank=trainer.adapter.rank if isinstance(trainer.adapter, Adapter) else 0,
        four_bit=trainer.adapter.four_bit,
    )


def check(step: str, need: Need, config: Config, model: Architecture, gib: float) -> None:
    """ConfigError where a step needs more than it may take of a GPU of `gib` GiB: with what would fit."""
    limit = gib * (config.hardware.gpu_memory if step == "sample" else 1)
    if sum(need.values()) <= limit * GIB:
        return
    ways: dict[str, str] = {}
    for key, value, other in _ways_out(step, config, model):
        if sum(other.values()) <= limit * GIB:
            ways.setdefault(key, f"{key}={value}")
    remedy = f"Set {', or '.join(ways.values())}" if ways else "Take a smaller policy, or GPUs with more memory"
    raise ConfigError(f"{step} needs {described(need)} of each GPU, and may take {limit:.0f} GiB. {remedy}.")


def check_hosts(step: str, need: Need, workers: Workers, nodes: Sequence[Node]) -> str | None:
    """Return a line where the processes of a step hold most of a machine's memory; ConfigError where more than it has.

    need: of one process. nodes: those with GB, their memory in GiB, are compared.
    """
    line = None
    for node in nodes:
        count, gib = processes_on(node, workers), node.get("GB")
        held = count * sum(need.values()) / GIB
        if not count or gib is None or held <= gib / 2:
            continue
        line = f"{step} holds at least {held:.1f} of the {gib:.0f} GiB of a machine: {count} x {described(need)}"
        if held > gib:
            fit = int(gib * GIB // sum(need.values()))
            fewer = f"set {COUNTS[step]}={fit}, " if 0 < fit < count and step in COUNTS else ""
            raise ConfigError(f"{line}. To mend it, {fewer}{OFFLOADED if step == 'train' else ''}{LARGER}.")
    return line


def described(need: Need) -> str:
    """Return `23.1 GiB (weights 3.7, ...)`, the largest part first."""
    parts = sorted(((name, size) for name, size in need.items() if size > 0.05 * GIB), key=lambda part: -part[1])
    return f"{sum(need.values()) / GIB:.1f} GiB ({', '.join(f'{name} {size / GIB:.1f}' for name, size in parts)})"


def _ways_out(step: str, config: Config, model: Architecture) -> Iterator[tuple[str, object, Need]]:
    """Yield the key and value of settings that need less, of each key the nearest first, and what a GPU holds then."""
    trainer, sampler = config.trainer, config.sampler
    if step == "sample":
        longest = config.prompts.max_tokens + sampler.max_tokens
        for gpus in (2, 4, 8):
            yield "policy.tensor_parallel", gpus, sampling(model, gpus, longest, sampler.dtype)
        return
    if step == "reference":
        yield "adapter", "qlora", scoring(model, longest_of(config), trainer.dtype, four_bit=True)
        return
    chosen = training_of(config)
    for workers in (2, 4, 8, 16, 32, 64):
        if workers > chosen.workers and trainer.global_batch % workers == 0:
            yield "hardware.workers", workers, training(model, replace(chosen, workers=workers))
    for offload in ("optimizer", "all"):
        yield "hardware.offload", offload, training(model, replace(chosen, offload=offload))
    if not chosen.checkpointing:
        yield "trainer.gradient_checkpointing", "true", training(model, replace(chosen, checkpointing=True))
    yield "adapter", "lora", training(model, replace(chosen, rank=16))
    yield "adapter", "qlora", training(model, replace(chosen, rank=16, four_bit=True))
