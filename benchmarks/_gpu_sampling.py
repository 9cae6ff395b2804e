"""One engine of vLLM in a process of its own: `_gpu_sampling.py FOLDER SETTINGS`, SETTINGS: JSON of Sampling.

The last line of stdout is {"tokens", "seconds", "start_s"}.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _jobs
from benchmarks._random_policy import VOCABULARY
from benchmarks._rounds import answers
from sparring.stages.sample.engine import EngineSettings, make_engine
from sparring.stages.step import Workers


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What an engine is asked for: random prompts, each response as long as it may be."""

    prompts: int
    prompt_tokens: int
    k: int
    max_tokens: int
    reproducible: bool
    gpu: bool


def main(folder: str, text: str) -> None:
    """Load a policy without weights, which vLLM fills with random ones, warm up, and sample."""
    out, asked = answers(), Sampling(**json.loads(text))
    engine_args: dict[str, Any] = {"load_format": "dummy"}
    dtype = "bfloat16" if asked.gpu else "float32"
    longest = asked.prompt_tokens + asked.max_tokens
    chosen = _jobs.settings(
        longest, k=asked.k, max_tokens=asked.max_tokens, reproducible=asked.reproducible, dtype=dtype,
        engine_args=engine_args,
    )  # fmt: skip
    settings = EngineSettings(
        sampler=chosen.sampler,
        gpu_memory=0.9,
        kv_cache_gb=1,
        workers=Workers(cpus=os.cpu_count() or 1, gpus=int(asked.gpu)),
        max_model_len=longest,
        stop_ids=(),
    )
    begun = time.perf_counter()
    engine = make_engine("vllm", Path(folder), settings)
    rng = random.Random(0)
    prompts = [[rng.randrange(3, VOCABULARY) for _ in range(asked.prompt_tokens)] for _ in range(asked.prompts)]
    engine.generate(prompts[:2], [0, 1])
    start_s, begun = time.perf_counter() - begun, time.perf_counter()
    sampled = engine.generate(prompts, list(range(asked.prompts)))
    tokens = sum(len(one.ids) for responses in sampled for one in responses)
    print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - begun, "start_s": start_s}), file=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
