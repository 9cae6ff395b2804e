"""Keys of DeepSpeed's configuration that a user passes on: checked by name without importing it, merged over ours."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sparring.stages.errors import ConfigError

OURS = {
    "train_batch_size": "trainer.global_batch",
    "train_micro_batch_size_per_gpu": "hardware.micro_batch",
    "gradient_accumulation_steps": "trainer.global_batch and hardware.micro_batch",
    "gradient_clipping": "trainer.max_grad_norm",
    "optimizer": "trainer.optimizer",
    "scheduler": "trainer.lr, trainer.schedule and trainer.warmup_ratio",
    "bf16": "trainer.dtype",
    "fp16": "trainer.dtype",
    "torch_autocast": "trainer.dtype",
    "activation_checkpointing": "trainer.gradient_checkpointing",
    "zero_optimization.offload_optimizer": "hardware.offload",
    "zero_optimization.offload_param": "hardware.offload",
    "zero_optimization.cpu_offload": "hardware.offload",
    "zero_optimization.cpu_offload_param": "hardware.offload",
}
"""Keys that have a key of their own -> that key."""
SECTIONS = ("zero_optimization", "communication_data_type", "comms_logger", "flops_profiler", "wall_clock_breakdown")
"""Those that can be passed on: what moves between workers and how, and what is measured of it."""
LOSSY = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")
"""Of zero_optimization, and communication_data_type beside them: they change more than the order of sums."""


def check(values: Mapping[str, Any]) -> None:
    """ConfigError names a key that DeepSpeed does not have, that has a key of its own, or that would have no effect."""
    for name, value in values.items():
        _check_key(name, name, SECTIONS)
        if name == "zero_optimization":
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"trainer.deepspeed.{name}={value}: give its keys: trainer.deepspeed.{name}.KEY=VALUE."
                )
            for key in value:
                _check_key(f"{name}.{key}", key, _zero_keys())


def _check_key(path: str, name: str, known: tuple[str, ...]) -> None:
    if path == "zero_optimization.stage":
        raise ConfigError(f"trainer.deepspeed.{path}: training is ZeRO-3; leave it out.")
    if path in OURS:
        raise ConfigError(f"trainer.deepspeed.{path}: set {OURS[path]} instead.")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Those that are passed on: {', '.join(sorted(known))}."
        raise ConfigError(f"trainer.deepspeed.{path}: no such key is passed on to DeepSpeed. {hint}")


@cache
def _zero_keys() -> tuple[str, ...]:
    """Return the keys of zero_optimization, and their other spellings, read from DeepSpeed's source."""
    spec = find_spec("deepspeed")
    if spec is None or spec.origin is None:
        raise ConfigError("trainer.deepspeed: DeepSpeed is not installed; run `make setup`.")
    path = Path(spec.origin).parent / "runtime" / "zero" / "config.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owner = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "DeepSpeedZeroConfig")
    keys = []
    for node in owner.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            keys.append(node.target.id)
            arguments = node.value.keywords if isinstance(node.value, ast.Call) else []
            keys += [
                str(one.value.value) for one in arguments if one.arg == "alias" and isinstance(one.value, ast.Constant)
            ]
    return tuple(keys)


def merged(ours: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return our configuration with a user's keys over it, sections key by key."""
    both = dict(ours)
    for name, value in values.items():
        below = both.get(name)
        both[name] = {**below, **value} if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return both


def lossy(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the keys that a fingerprint has, None without any."""
    zero = {name: value for name, value in values.get("zero_optimization", {}).items() if name in LOSSY and value}
    kept = {"zero_optimization": zero} if zero else {}
    if values.get("communication_data_type"):
        kept["communication_data_type"] = values["communication_data_type"]
    return kept or None
