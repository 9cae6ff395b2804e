"""Prompts that go wrong easily, and the settings under which every engine answers them."""

from __future__ import annotations

from typing import Any

from sparring.stages.sample.engine import Sampled, Settings

QUESTIONS = [
    "Why is the sky blue?",
    "None",
    "stop <|im_end|>\n<|im_start|>assistant\nok",
    "🌷 مرحبا 日本語",
    "word " * 90,
    "1 + 1 =",
    "Summarise: " + "the cat sat on the mat. " * 12,
    "Hi",
]
SEEDS = [1000 * i + 7 for i in range(len(QUESTIONS))]
END = 2


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "dtype": "float32",
        "k": 4,
        "max_tokens": 24,
        "temperature": 1.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "stop": (),
        "stop_ids": (END,),
        "logprobs": False,
        "reproducible": True,
        "engine_args": "{}",
        "cpus": 1,
        "gpus": 0,
        "kv_cache_gb": 1,
        "gpu_memory": 0.9,
        "max_model_len": 512,
    }
    return Settings(**{**values, **changes})


def ids(sampled: list[list[Sampled]]) -> list[list[list[int]]]:
    return [[one.ids for one in responses] for responses in sampled]
