"""Sampling: tokens/s of our engine beside bare vLLM, the published scripts' way, and transformers, in one table.

    .venv/bin/python benchmarks/sample.py [--prompts 16] [--k 4] [--max-tokens 64]

Every way runs in a process of its own, one after another, on the same prompts, model, dtype and cores; start-up is
left out. `official`: K passes over the prompts, one response each, a seed per pass, vLLM's default settings but for
eager mode. Only the ratios mean anything on a machine that does other things as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stages.sample import embedded
from stages.sample.engine import Settings

WAYS = ("ours", "bare vLLM", "official", "transformers")
MAX_MODEL_LEN = 480


def settings(arguments: argparse.Namespace, engine_gpus: int = 0) -> Settings:
    """Return the CPU profile's engine settings."""
    return Settings(
        dtype="float32",
        k=arguments.k,
        max_tokens=arguments.max_tokens,
        temperature=1.0,
        top_p=1.0,
        stop_ids=(2,),
        cpus=os.cpu_count() or 1,
        gpus=engine_gpus,
        kv_cache_gb=1,
        gpu_memory=0.9,
        max_model_len=MAX_MODEL_LEN,
    )


def prompts(count: int) -> list[list[int]]:
    """Return token ids of every few starter prompts."""
    from stages.sample.chat import load_chat

    chat = load_chat(embedded.policy_path())
    starter = Path(embedded.__file__).with_name("starter.jsonl")
    rows = [json.loads(line) for line in starter.read_text().splitlines()]
    return [chat.render(row["messages"]) for row in rows[:: max(1, len(rows) // count)]][:count]


def ours(ids: list[list[int]], arguments: argparse.Namespace) -> Any:
    """One `generate` call with n = K, through our engine."""
    from stages.sample.engine_vllm import VllmEngine

    engine = VllmEngine(embedded.policy_path(), settings(arguments))
    engine.generate(ids[:1], [0])
    return lambda: sum(len(one.ids) for row in engine.generate(ids, [7 * i for i in range(len(ids))]) for one in row)


def vllm(ids: list[list[int]], arguments: argparse.Namespace, passes: bool) -> Any:
    """Bare `LLM.generate`: n = K at once, or K passes of one response."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(embedded.policy_path()),
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_chunked_prefill=False,
        max_num_batched_tokens=4096,
        kv_cache_memory_bytes=1 << 30,
    )
    inputs = [{"prompt_token_ids": row} for row in ids]

    def once(n: int, seed: int) -> int:
        chosen = SamplingParams(
            n=n, temperature=1.0, max_tokens=arguments.max_tokens, seed=seed, stop_token_ids=[2], detokenize=False
        )
        return sum(len(o.token_ids) for out in llm.generate(inputs, chosen, use_tqdm=False) for o in out.outputs)

    llm.generate(inputs[:1], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
    if passes:
        return lambda: sum(once(1, seed) for seed in range(arguments.k))
    return lambda: once(arguments.k, 0)


def transformers(ids: list[list[int]], arguments: argparse.Namespace) -> Any:
    """`sampler=transformers`."""
    from stages.sample.engine_transformers import TransformersEngine

    engine = TransformersEngine(embedded.policy_path(), settings(arguments))
    engine.generate(ids[:1], [0])
    return lambda: sum(len(one.ids) for row in engine.generate(ids, list(range(len(ids)))) for one in row)


def measure(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one way in this process and return its tokens and seconds."""
    ids = prompts(arguments.prompts)
    make = {"ours": ours, "transformers": transformers}.get(way)
    run = make(ids, arguments) if make else vllm(ids, arguments, passes=way == "official")
    begun = time.perf_counter()
    tokens = run()
    return {"tokens": tokens, "seconds": time.perf_counter() - begun}


def main() -> None:
    """Measure every way in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--way", choices=WAYS, help="measure this one here and print it as JSON")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments)))
        return
    rates = {}
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rates[way] = found["tokens"] / found["seconds"]
    table = Table("way", "tokens/s", "ours / this", title=f"{arguments.prompts} prompts, K={arguments.k}, fp32")
    for way, rate in rates.items():
        table.add_row(way, f"{rate:.0f}", f"{rates['ours'] / rate:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
