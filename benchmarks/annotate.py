"""Annotation beside llm-blender, in fp32 and bf16; what the semantic gate adds; memory and bookkeeping at scale.

    .venv/bin/python -m benchmarks.annotate [--json FILE] [--only speed|precision|embed|passes|memory]
        [--texts FILE] [--smallest]

The judge is a PairRM of DeBERTa-v3-base's size with random weights and a tokenizer made on the spot. Responses are
made up: stretches of the starter prompts, as long as UltraFeedback's (log-normal, median 120 words). With --texts,
JSON lines of {"prompt", "chosen", "rejected"}, they are real: a row's own two, and those of the rows after it. One in
20 repeats another of its prompt word for word, as a policy's do at a low temperature; the table says how many do.

Each contender is a process that stays loaded, on all cores; rounds alternate between them, so that other work on the
machine meets them all; medians over the rounds, ratios taken within a round. All are asked for the same: both orders
of every pair of responses.
speed: ordered pairs/s.
    llm-blender, batch 1   Blender.rank(…, return_scores=True, batch_size=1), as the published scripts call it
    llm-blender, batch N   the fastest of 2, 4, 8 and 16 prompts at once (no more than --prompts), tried beforehand
    ours                   a shard of the step `score`, from its samples to its hashed parquet file; a text that
                           repeats is judged once, a pair of equal ones not at all: `of those passed` is without that
precision: the same shard in bf16. Without bf16 instructions it is run in one round alone, and has no aim.
passes: PairRM alone, in fp32 and bf16, on this machine's GPU where it has one (no GPU has run this): pairs/s, and what
bf16 does to P and to win rates. For a GPU, where it is of DeBERTa-v3-large's size: --only passes --prompts 64.
embed: shards of the steps `embed` and `calibrate` over the shard of `score` that they belong to.
memory: the real Executor, Ray, shards, parts, finish and manifests of score, embed, pairs and calibrate at scale, with
STAND-INS for the oracle and the encoder, which say random things.

Only ratios mean anything on a machine that does other things as well.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from benchmarks import _annotate_memory, _annotate_passes, _annotate_rounds
from benchmarks._parts import run_parts
from benchmarks._table import parse, with_json

PARTS = {**_annotate_rounds.PARTS, "passes": _annotate_passes.measure, "memory": _annotate_memory.measure}


SMALLEST = {"prompts": 1, "k": 2, "rounds": 1, "prompts_at_scale": 300}


def main() -> int:
    """Run the parts asked for; return 1 when one of them fails."""
    parser = with_json(__doc__)
    parser.add_argument("--texts", type=Path, metavar="FILE", help="JSON lines of prompt, chosen, rejected")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a round")
    parser.add_argument("--k", type=int, default=5, help="responses per prompt")
    parser.add_argument("--rounds", type=int, default=2, help="rounds over all contenders")
    parser.add_argument("--large", action="store_true", help="passes: DeBERTa-v3-large's size on a CPU too")
    parser.add_argument("--prompts-at-scale", type=int, default=60_000, help="prompts of the memory case")
    parser.add_argument("--only", choices=PARTS, help="run this part alone")
    arguments = parse(parser, SMALLEST)
    parts = {name: partial(measure, arguments) for name, measure in PARTS.items() if arguments.only in (None, name)}
    return run_parts("annotation", parts, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
