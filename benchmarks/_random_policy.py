"""A policy with random weights: sizes of which no folder is at hand here.

.venv/bin/python -m benchmarks._random_policy 8b FOLDER           writes one
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from sparring.stages.sample import embedded

VOCABULARY, END = 49152, 2
"""SmolLM2's, whose tokenizer goes with the policy: TRL asks for one."""
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "1.5b": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


def shape_of(name: str) -> Any:
    """Return transformers' configuration of a Llama of CONFIGS."""
    from transformers import LlamaConfig

    shape = LlamaConfig(
        **CONFIGS[name],
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=END,
        dtype="bfloat16",
    )
    shape.architectures = ["LlamaForCausalLM"]
    return shape


def random_policy(name: str, folder: Path) -> Path:
    """Write a Llama of a configuration, with random weights and the embedded policy's tokenizer; return the folder."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(shape_of(name))
    model.to(torch.bfloat16).save_pretrained(folder)
    for path in embedded.policy_path().glob("*token*"):
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(embedded.policy_path() / "chat_template.jinja", folder / "chat_template.jinja")
    return folder


if __name__ == "__main__":
    random_policy(sys.argv[1], Path(sys.argv[2]))
