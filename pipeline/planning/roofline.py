"""How fast each stage can be on a GPU: its floating-point operations and bytes over its peaks times an efficiency.

Pure arithmetic. No GPU has shown these rates: peaks are those of data sheets, efficiencies are stated below with where
they come from, and `sparring profile` measures what replaces both. P weights, kv bytes of a token's keys and values.

    sampling      a step of a batch of B responses takes max(2PB FLOP, 2P bytes read) + B·context·kv bytes read; prompts
                  are 2P FLOP a token, once for all of their responses; the last response is alone at the end
    PairRM        DeBERTa-v3-large: 2·12·hidden² FLOP a layer and token, and its attention; both texts in one pass
    log-probs     2P FLOP a token, and attention
    training      three times that, four with gradient checkpointing; ZeRO-3 gathers P twice and reduces P once a pass
    loading       bytes of the weights, read and hashed

Sources: 2P and 6P FLOP a token, arXiv 2001.08361 section 2.1; decoding, arXiv 2211.05102 section 3; ZeRO-3's traffic of
3P, arXiv 1910.02054 section 7. Training computes while it gathers and reduces: the longer of the two counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from sparring.pipeline.planning.memory import BF16, ENGINE_OVERHEAD, FP32, GIB, OVERHEAD, Architecture


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A GPU's data sheet: FLOP/s of dense products, bytes, bytes/s."""

    flops: float
    """Of bf16."""
    flops_fp32: float
    """Of fp32 outside the tensor cores."""
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """To the other GPUs of its node, in one direction."""


ACCELERATORS = {
    "a100": Accelerator(
        flops=312e12,
        flops_fp32=19.5e12,
        memory_bytes=80e9,
        memory_bytes_per_s=2.04e12,
        link_bytes_per_s=300e9,
    ),
    "h100": Accelerator(
        flops=989e12,
        flops_fp32=67e12,
        memory_bytes=80 * GIB,
        memory_bytes_per_s=3.35e12,
        link_bytes_per_s=450e9,
    ),
    "h200": Accelerator(
        flops=989e12,
        flops_fp32=67e12,
        memory_bytes=141e9,
        memory_bytes_per_s=4.8e12,
        link_bytes_per_s=450e9,
    ),
}
"""SXM modules, by NVIDIA's data sheets."""

NETWORK = 400e9
"""Bytes/s of a node to others, in one direction: a port of 400 Gb/s for each of its 8 GPUs. Collectives over several
nodes use all ports at once, so that this, not one port, is what a gather waits for."""
DECODE = 0.65
"""Share of peak that decoding gets, of FLOP/s and of bytes/s. With it an H100 samples from 8 billion weights in bf16 at
about 19,000 tokens/s. TensorRT-LLM publishes 17,660 in FP8 for 500 tokens in, 2,000 out: its contexts are longer."""
STEP_S = 0.003
"""Of a decoding step beside that: scheduling, drawing tokens."""
FORWARD = 0.45
"""Share of the peak FLOP/s in a pass without gradients: prompts, log-probs. Of training, whose passes are longer."""
TRAINING = 0.5
"""Share of the peak FLOP/s in training, what is computed again counted: with gradient checkpointing an MFU of .375.
torchtitan publishes 33 to 39% for Llama-3.1-8B on 8 H100 in bf16."""
PAIRRM = {"float32": 0.52, "bfloat16": 0.28}
"""Share of the peak FLOP/s of the judge's dtype, a guess: nobody has published it. In bf16 about half of it is left
where the scores of relative positions are not added in the attention's kernel, but written to memory and read again."""
ENCODER = 0.1
"""Share of the peak FLOP/s in fp32 of a small sentence encoder."""
LINK = 0.75
"""Share of a link's bytes/s that a collective gets."""
HOP_S = 15e-6
"""Of a collective of any size: its start, in a CUDA graph."""
LOADING = 2e9
"""Bytes/s at which a process reads, hashes and places a model's weights."""
STARTS = {"engines": 25.0, "annotators": 12.0, "train": 40.0}
"""Seconds of a pool's processes, models apart: imports; of an engine its warm-up with a warm compile cache, of training
Ray Train's workers, NCCL and ZeRO-3's engine."""
MOST_RESPONSES = 1024
"""Responses that vLLM decodes at once (max_num_seqs) on GPUs of 70 GB and more."""
KV_BYTES, KV_WEIGHTS = 131_072, 8.03e9
"""Of a token, and weights, of Llama-3-8B: others of which only the weights are known are scaled by the square root."""

DEBERTA_LAYERS, DEBERTA_HIDDEN, DEBERTA_SPAN = 24, 1024, 512
"""PairRM's encoder, DeBERTa-v3-large; it has 2·256 relative positions."""


def kv_bytes(model: Architecture) -> float:
    """Return the bytes of a token's keys and values in bf16."""
    return model.kv_bytes or KV_BYTES * sqrt(model.weights / KV_WEIGHTS)


def forward_flops(model: Architecture, length: float) -> float:
    """Return the FLOP of a token in a sequence of `length`, whose attention sees half of it in the mean."""
    return 2 * model.weights + 2 * length * model.q_width * model.layers


def responses_at_once(gpu: Accelerator, model: Architecture, context: float, gpus: int, share: float) -> int:
    """Return how many responses an engine of `gpus` decodes at once. context: tokens that each has in the mean; share:
    of the memory that the engine takes."""
    room = gpus * (gpu.memory_bytes * share - OVERHEAD - ENGINE_OVERHEAD) - BF16 * model.weights
    return max(1, min(MOST_RESPONSES, int(room / (context * kv_bytes(model)))))


def decode_step_s(gpu: Accelerator, model: Architecture, batch: int, context: float, gpus: int = 1) -> float:
    """Return the seconds in which an engine of `gpus` makes one token of each of `batch` responses."""
    products = max(2 * model.weights * batch / gpu.flops, BF16 * model.weights / gpu.memory_bytes_per_s)
    read = batch * context * kv_bytes(model) / gpu.memory_bytes_per_s
    joined = 2 * model.layers * all_reduce_s(gpu, BF16 * batch * model.hidden, gpus)
    return (products + read) / DECODE / gpus + joined + STEP_S


def sampling_tokens_per_s(
    gpu: Accelerator, model: Architecture, prompt: float, length: float, k: int, gpus: int = 1, share: float = 0.9
) -> float:
    """Return the tokens/s of an engine of `gpus` that always has a next prompt, K responses of `length` to each."""
    context = prompt + length / 2
    batch = responses_at_once(gpu, model, context, gpus, share)
    decode = k * length / batch * decode_step_s(gpu, model, batch, context, gpus)
    return k * length / (decode + prompt * forward_flops(model, prompt) / (gpu.flops * FORWARD * gpus))


def tail_s(gpu: Accelerator, model: Architecture, longest: int, gpus: int = 1) -> float:
    """Return the seconds of the longest response, which an engine decodes alone when its prompts are at their end."""
    return longest * decode_step_s(gpu, model, 1, longest / 2, gpus)


def pairrm_flops(tokens: float) -> float:
    """Return the FLOP of an ordered pair of `tokens`: products of the layers, q·k and a·v of all pairs of tokens, and q
    and k with the relative positions."""
    products = 2 * 12 * DEBERTA_HIDDEN**2 * tokens
    attention = 4 * DEBERTA_HIDDEN * tokens**2 + 4 * DEBERTA_HIDDEN * tokens * DEBERTA_SPAN
    return DEBERTA_LAYERS * (products + attention)


def pairrm_pairs_per_s(gpu: Accelerator, tokens: float, dtype: str) -> float:
    """Return the ordered pairs/s of one GPU."""
    peak = gpu.flops_fp32 if dtype == "float32" else gpu.flops
    return peak * PAIRRM[dtype] / pairrm_flops(tokens)


def embed_responses_per_s(gpu: Accelerator, tokens: float, weights: int) -> float:
    """Return the responses/s of one GPU. weights: of the encoder's layers."""
    return gpu.flops_fp32 * ENCODER / (2 * weights * tokens)


def scoring_tokens_per_s(gpu: Accelerator, model: Architecture, length: float) -> float:
    """Return the tokens/s of one GPU that computes log-probs of sequences of `length`."""
    return gpu.flops * FORWARD / forward_flops(model, length)


def training_tokens_per_s(gpu: Accelerator, model: Architecture, length: float, checkpointing: bool) -> float:
    """Return the tokens/s of one GPU, collectives apart."""
    return gpu.flops * TRAINING / ((4 if checkpointing else 3) * forward_flops(model, length))


def zero3_s(model: Architecture, workers: int, link_bytes_per_s: float) -> float:
    """Return the seconds of ZeRO-3's collectives in a step of one pass: two gathers in bf16, one reduction in fp32."""
    others = (workers - 1) / workers
    return others * (2 * BF16 + FP32) * model.weights / (link_bytes_per_s * LINK)


def all_reduce_s(gpu: Accelerator, size: float, gpus: int) -> float:
    """Return the seconds in which `gpus` of a node sum `size` bytes."""
    return HOP_S + 2 * (gpus - 1) / gpus * size / (gpu.link_bytes_per_s * LINK) if gpus > 1 else 0.0


def loading_s(size: float) -> float:
    """Return the seconds in which a process loads a model of `size` bytes."""
    return size / LOADING
