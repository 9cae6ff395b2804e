"""The training step beside TRL's DPOTrainer with sppo_hard: speed, memory, where a step goes, and what ours cost.

    .venv/bin/python -m benchmarks.train [--json FILE] [--only PART] [--run runs/default] [--store store] [--smallest]

The pairs are real: those of the first iteration of a run (`make iter N=1` makes one), with hard targets, for TRL's loss
has no others. All contenders get the same token ids, the same policy in fp32, AdamW, 8 pairs per optimizer step and all
cores. Each is a process that stays loaded, inside one run of its trainer; a round is an epoch, the first for warm-up,
and rounds alternate between contenders, so that other work on the machine meets them all; medians over the rounds,
ratios taken within a round. tokens/s: of prompt and response of both sequences of a pair, no padding; a prompt that is
computed once for both counts twice for everyone. `tokens computed` are those that went through the model, padding too.
parity: the losses of the first 3 optimizer steps on 8 pairs; TRL's is the sum of two squares, ours half of it.
speed:
    TRL, defaults      1.16 as it comes: gradient checkpointing, the reference in memory; but for bf16, which is off
    TRL, best          no checkpointing, precomputed reference, grouped by length, the fastest batch of --batches
    ours               the step's trainer with ZeRO-3, one worker, without Ray Train around it; and with 2 pairs in a
                       forward pass, which takes less memory
    with the reference's pass: what TRL's best and ours computed before they began is counted in, for one epoch
    peak memory is VmHWM of the process
prompts: ours with each response after a copy of its prompt of its own, padded.
repulsion, band, calibration: ours with the hinge on the last hidden states; the band measured at every step, beside
at none (the default, and that of ours elsewhere, is every fourth); with reward calibration.

With --gpu --config 1.5b, or --gpu --config 8b --adapter lora, on an H100: the same in bf16 on random pairs, memory is
what torch allocated, and model FLOPs.

Only ratios mean anything on a machine that does other things as well.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import _train_rounds
from benchmarks._parts import run_parts
from benchmarks._random_policy import CONFIGS
from benchmarks._table import parse, with_json
from benchmarks._train_pairs import GLOBAL_BATCH, pairs_of
from benchmarks._train_random import random_pairs
from sparring.stages.errors import SparringError
from sparring.stages.sample import embedded

SMALLEST = {"config": "tiny", "pairs": GLOBAL_BATCH, "rounds": 1, "batches": [4], "micro_batch": 4}


def main() -> int:
    """Run the parts asked for; return 1 when one of them fails."""
    parser = with_json(__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/default"), help="folder of the run with the pairs")
    parser.add_argument("--store", type=Path, default=Path("store"), help="the run's store")
    parser.add_argument("--policy", type=Path, help="folder of the policy that sampled, if not the embedded one")
    parser.add_argument("--pairs", type=int, default=32, help=f"pairs of a round, a multiple of {GLOBAL_BATCH}")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all contenders")
    parser.add_argument(
        "--batches", type=int, nargs="+", choices=_train_rounds.BATCHES, default=_train_rounds.BATCHES, help="for TRL"
    )
    parser.add_argument("--micro-batch", type=int, default=GLOBAL_BATCH, help="pairs of a forward pass of ours")
    parser.add_argument("--config", choices=CONFIGS, help="random pairs and a random Llama of this size, not a run's")
    parser.add_argument("--adapter", choices=("off", "lora"), default="off", help="all weights, or lora on all of them")
    parser.add_argument("--gpu", action="store_true", help="in bf16 on one GPU; not tried yet")
    parser.add_argument("--only", choices=_train_rounds.PARTS, help="run this part alone")
    arguments = parse(parser, SMALLEST)
    if arguments.pairs < GLOBAL_BATCH or arguments.pairs % GLOBAL_BATCH:
        parser.error(f"--pairs {arguments.pairs}: must be a multiple of {GLOBAL_BATCH}")
    alike = not arguments.gpu and arguments.adapter == "off"  # in fp32, from the same start
    possible = [part for part in _train_rounds.PARTS if part != "parity" or alike]
    chosen = [part for part in possible if arguments.only in (None, part)]
    if not chosen:
        parser.error("--only parity: compares trainings of all weights in fp32; leave --gpu and --adapter out")
    with tempfile.TemporaryDirectory(prefix="sparring-bench-") as folder:
        try:
            if arguments.config:
                pairs = random_pairs(arguments.config, arguments.pairs, Path(folder))
            else:
                policy = arguments.policy or embedded.policy_path()
                pairs = pairs_of(arguments.run, arguments.store, policy, arguments.pairs)
        except SparringError as error:
            parser.error(str(error))
        parts = {name: partial(_train_rounds.measure, name, arguments, pairs) for name in chosen}
        return run_parts("training", parts, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
