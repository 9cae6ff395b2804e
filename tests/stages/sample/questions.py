"""Prompts that go wrong easily, and the settings under which every engine answers them."""

from __future__ import annotations

from typing import Any

from sparring.stages.sample.engine import EngineSettings, Sampled
from sparring.stages.step import Workers
from tests.settings import changed, sample

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


def engine_settings(engine: str = "vllm", **changes: Any) -> EngineSettings:
    chosen = sample(engine)
    made = EngineSettings(
        sampler=chosen.sampler,
        gpu_memory=chosen.hardware.gpu_memory,
        kv_cache_gb=chosen.hardware.kv_cache_gb,
        workers=Workers(),
        max_model_len=chosen.max_model_len,
        stop_ids=(END,),
    )
    return changed(made, **{"dtype": "float32", "k": 4, "max_tokens": 24, "kv_cache_gb": 1, **changes})


def ids(sampled: list[list[Sampled]]) -> list[list[list[int]]]:
    return [[one.ids for one in responses] for responses in sampled]
