"""Arguments that a user passes on to the sampling engine: their names are checked without importing it."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any

from sparring.stages.errors import ConfigError
from sparring.stages.vllm import source

OURS = {
    "model": "policy",
    "tokenizer": "policy",
    "revision": "policy.revision",
    "dtype": "sampler.dtype",
    "seed": "seed",
    "max_model_len": "prompts.max_tokens and sampler.max_tokens",
    "tensor_parallel_size": "policy.tensor_parallel",
    "pipeline_parallel_size": "policy.tensor_parallel",
    "data_parallel_size": "hardware.engines",
    "gpu_memory_utilization": "hardware.gpu_memory",
    "kv_cache_memory_bytes": "hardware.kv_cache_gb",
    "generation_config": "the sampling group",
    "logprobs_mode": "sampler.logprobs",
    "skip_tokenizer_init": "sampler.stop",
}
"""Arguments that have a key of their own -> that key."""
SPEED_ONLY = frozenset(("max_num_seqs", "max_num_batched_tokens", "block_size", "enforce_eager", "disable_log_stats"))
"""Arguments that change rounding at most: they are in no fingerprint. Every other argument is."""


def check(engine: str, arguments: Mapping[str, Any]) -> None:
    """ConfigError names an argument that the engine does not have, or that has a key of its own."""
    for name in arguments:
        if name == "trust_remote_code":
            raise ConfigError("sampler.engine_args.trust_remote_code: a policy's own code is never run.")
        if name in OURS:
            raise ConfigError(f"sampler.engine_args.{name}: set {OURS[name]} instead.")
        if name not in _taken_by(engine):
            near = difflib.get_close_matches(name, _taken_by(engine), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"sampler.engine_args.{name}: the engine {engine} has no such argument.{hint}")


@cache
def _taken_by(engine: str) -> frozenset[str]:
    """Return the names of the arguments that the engine takes; vLLM's are read from its source."""
    if engine == "transformers":
        return frozenset(("attn_implementation",))
    if engine != "vllm":
        return frozenset()
    tree = source("engine", "arg_utils.py")
    if tree is None:
        raise ConfigError("sampler.engine=vllm: vLLM is not installed; run `make setup`.")
    owner = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs")
    fields = (node.target for node in owner.body if isinstance(node, ast.AnnAssign))
    return frozenset(target.id for target in fields if isinstance(target, ast.Name))
