"""vLLM in this process: imported quickly, set up for a CPU or for GPUs.

What the settings are for, measured on SmolLM2-135M in fp32 (vLLM 0.32, CPU):
- In this process (no engine-core process): a start of seconds, and nothing is left behind by kill -9.
- A KV block of 32 tokens instead of the CPU's 128: only whole blocks are shared, and chat prompts are short.
- Eager: compilation takes minutes and gains nothing at this size.
- An import without garbage collection and without scipy and scikit-learn takes a third less, see `quickly`.
- No core binding: vLLM binds only its worker processes, which there are none of; threads are `cpus`.

A GPU takes the same path with vLLM's own defaults for blocks, prefill and graphs; it has not been run on one yet.
"""

from __future__ import annotations

import ast
import fcntl
import gc
import hashlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
BLOCK = 32
BATCHED_TOKENS = 4096
UNUSED = ("scipy", "sklearn")
"""Packages that transformers and vLLM import where they are installed, for audio, object detection and assisted
decoding: 1,200 modules together with pandas, which they import in turn."""
EVERYWHERE: dict[str, Any] = {
    "generation_config": "vllm",
    "disable_log_stats": True,
    "enable_prefix_caching": True,
    "logprobs_mode": "raw_logprobs",
}
"""Arguments of every engine: nothing is taken from the policy's recommendations, log-probs are the model's own."""


def import_vllm(cpus: int, batch_invariant: bool = False) -> Any:
    """Import vLLM, set up for this process with so many CPU threads; returns its class LLM.

    batch_invariant: on GPUs of compute capability 8.0 or later, a response does not depend on its batch.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if batch_invariant:  # read when modules of vLLM are imported
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(cpus)
    with quickly():
        import torch
        from vllm import LLM
    torch.set_num_threads(cpus)
    return LLM


def source(*parts: str) -> ast.Module | None:
    """Return the syntax tree of a module of vLLM, in 50 ms instead of the 7 s of an import; None without vLLM."""
    spec = find_spec("vllm")
    path = Path(spec.origin).parent.joinpath(*parts) if spec and spec.origin else None
    return ast.parse(path.read_text(encoding="utf-8")) if path and path.is_file() else None


def known_architectures() -> frozenset[str]:
    """Return the architectures of config.json that vLLM has a model for; none where its registry is not as expected."""
    tree = source("model_executor", "models", "registry.py")
    tables = {
        node.targets[0].id: node.value
        for node in (tree.body if tree else ())
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    parts = tables["_VLLM_MODELS"].values if "_VLLM_MODELS" in tables else []
    named = (tables[part.id] for part in parts if isinstance(part, ast.Name) and part.id in tables)
    return frozenset(str(key.value) for table in named for key in table.keys if isinstance(key, ast.Constant))


def runner(architecture: str) -> str:
    """Return how vLLM runs an architecture, by its name: generate, pooling, or '' where its source does not have it."""
    tree = source("config", "model.py")
    for node in tree.body if tree else ():
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_SUFFIX_TO_DEFAULTS" and node.value:
            ends = ast.literal_eval(node.value)  # the first that fits
            return next((kind for end, (kind, _) in ends if architecture.endswith(end)), "")
    return ""


def cpu_head_sizes() -> list[int]:
    """Return the sizes of heads that vLLM's attention on a CPU has kernels for; none where its source has no list."""
    tree = source("v1", "attention", "backends", "cpu_attn.py")
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes":
            last = node.body[-1]
            return list(ast.literal_eval(last.value)) if isinstance(last, ast.Return) and last.value else []
    return []


@contextmanager
def quickly() -> Iterator[None]:
    """Import without the packages in `UNUSED`, and without garbage collection of modules, then or later.

    Once transformers is imported it has decided which packages it uses, and nothing is hidden.
    """
    hidden = [name for name in UNUSED if not {name, "transformers"} & sys.modules.keys()]
    collecting = gc.isenabled()
    gc.disable()
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: as if it were not installed
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        if collecting:
            gc.enable()


_linked: dict[Path, BinaryIO] = {}
"""Links that this process has locked: a folder stays behind its link while an engine may read it."""


def same_name(folder: Path) -> Path:
    """Return a link to a model's folder that has the same name for every model of its architecture.

    vLLM compiles anew for each path: the model's path is in the key of its cache (ModelConfig.compute_hash), although
    what is compiled depends on config.json and the engine's arguments, which are in the key too. Where the name is
    taken, by an engine of another model on this machine, the folder itself is returned. No GPU has run this.
    """
    config = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    root = Path(os.path.expanduser(os.environ.get("VLLM_CACHE_ROOT", "~/.cache/vllm")))
    link = root / "sparring" / f"{socket.gethostname()}-{config[:16]}"
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        lock = _linked.get(link) or link.with_suffix(".lock").open("ab")
        _linked[link] = lock
        with suppress(BlockingIOError):  # others have engines behind this link
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary = link.with_suffix(f".{os.getpid()}")
            temporary.symlink_to(folder.absolute())
            temporary.replace(link)
        fcntl.flock(lock, fcntl.LOCK_SH)
        return link if link.resolve() == folder.resolve() else folder
    except OSError:  # it saves time alone
        return folder


def on_cpu(max_model_len: int, kv_cache_gb: int) -> dict[str, Any]:
    """Return the arguments of an engine on a CPU, after `import_vllm`."""
    from vllm.model_executor.models import registry

    # Else a model class met for the first time on a machine is looked at in a process that imports all of vLLM again,
    # lest a GPU is taken; on a CPU there is none.
    registry._run_in_subprocess = lambda fn: fn()
    return {
        "enforce_eager": True,
        "max_num_batched_tokens": max(BATCHED_TOKENS, max_model_len),
        "block_size": BLOCK,
        "kv_cache_memory_bytes": kv_cache_gb << 30,
    }


def on_gpus(gpus: int, gpu_memory: float) -> dict[str, Any]:
    """Return the arguments of an engine on GPUs, one tensor-parallel group; gpu_memory: its share of theirs."""
    return {"gpu_memory_utilization": gpu_memory, "tensor_parallel_size": gpus}
