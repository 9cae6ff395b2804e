"""The sampling step beside other ways to sample, the price of its bookkeeping, and where an engine's start goes.

    .venv/bin/python -m benchmarks.sample [--json FILE] [--only speed|bookkeeping|start] [--smallest]

speed: tokens/s on SmolLM2-135M in fp32, short prompts and prompts of about 1,000 tokens, same sampling for all (the
published scripts': temperature 0.7, top_p 0.9). Each contender is a process that stays loaded; rounds alternate between
them, so that other work on the machine meets them all; medians over the rounds, ratios taken within a round.
    official       the published scripts' way: K passes of one response, a seed per pass, vLLM's defaults but for eager
                   mode and no chunked prefill, which seeds need on the CPU; the prefix cache is emptied between
                   passes, as a pass over a real set of prompts does. `official, cached` keeps it
    bare           LLM.generate(n=K) alone, with the settings and seeds of ours
    ours           a shard from its prompts to its hashed parquet file
    transformers   model.generate(num_return_sequences=K)
    no seeds       reproducible=false: what reproducibility costs
bookkeeping: the real Executor, Ray, shards, parts, finish and manifest at scale, around a STAND-IN for the engine that
samples nothing.
start: medians over fresh processes.

Only ratios mean anything on a machine that does other things as well.
"""

from __future__ import annotations

import sys
from functools import partial

from benchmarks import _bookkeeping, _speed, _start
from benchmarks._parts import run_parts
from benchmarks._table import parse, with_json

PARTS = {"speed": _speed.measure, "bookkeeping": _bookkeeping.measure, "start": _start.measure}


SMALLEST = {"prompts": 1, "k": 2, "max_tokens": 4, "rounds": 1, "prompts_at_scale": 300}


def main() -> int:
    """Run the parts asked for; return 1 when one of them fails."""
    parser = with_json(__doc__)
    parser.add_argument("--prompts", type=int, default=6, help="prompts of each speed case")
    parser.add_argument("--k", type=int, default=5, help="responses per prompt")
    parser.add_argument("--max-tokens", type=int, default=48, help="longest response of the speed cases")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the speed cases, starts of an engine")
    parser.add_argument("--prompts-at-scale", type=int, default=60_000, help="prompts of the bookkeeping case")
    parser.add_argument("--only", choices=PARTS, help="run this part alone")
    arguments = parse(parser, SMALLEST)
    parts = {name: partial(measure, arguments) for name, measure in PARTS.items() if arguments.only in (None, name)}
    return run_parts("sampling", parts, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
