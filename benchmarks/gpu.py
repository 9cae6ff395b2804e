"""What only a GPU can show, in under ten minutes on one card of 40 GB or more, without the hub: `make bench-gpu`.

    .venv/bin/python -m benchmarks.gpu [--json FILE] [--markdown FILE] [--only sampling|pairrm|training] [--smallest]

sampling   tokens/s of one engine of vLLM with 8 billion random weights in bf16, prompts of 128 tokens, K=5 responses of
           512; with sampler.reproducible, and without, which is what reproducibility costs; beside what
           pipeline/planning/roofline.py estimates
pairrm     ordered pairs/s of a PairRM of DeBERTa-v3-large's size with random weights, in fp32 and bf16, and what bf16
           does to win rates (benchmarks.annotate --only passes)
training   our trainer at 1.5 billion random weights in bf16, one worker: tokens/s, model FLOP/s (MFU, aim 45%), and the
           peak of its memory beside what the plan estimates, which is with gradient checkpointing, as training is on
           a card below 60 GiB

On eight cards, or on a cluster, `sparring profile` measures every stage at once by the real steps, engines and ranks:

    .venv/bin/python -m benchmarks._random_policy 8b random-8b
    .venv/bin/sparring profile eight policy=folder policy.path=random-8b sampler.k=5 sampler.max_tokens=512 \\
        trainer=official prompts.per_iteration=2048

No GPU has run this. --smallest tries the same code at toy size on a CPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from benchmarks._gpu_sampling import Sampling
from benchmarks._parts import run_parts
from benchmarks._process import answer_of, run_to_end
from benchmarks._random_policy import CONFIGS, VOCABULARY, shape_of
from benchmarks._rounds import loaded
from benchmarks._table import MFU, Row, number, parse, with_json
from benchmarks._train_pairs import GLOBAL_BATCH, MAX_LENGTH, Setting
from benchmarks._train_random import random_pairs
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.planning import memory, roofline
from sparring.pipeline.store.files import check_target, write_target
from sparring.stages.errors import SparringError

NO_GPU = 2
"""Exit code without a GPU."""
FULL_CARD = 60.0
"""GiB from which a forward pass of training takes all pairs of an optimizer step."""
SMALLEST = {"engine": "tiny", "policy": "tiny", "prompts": 2, "max_tokens": 4, "pairs": GLOBAL_BATCH, "rounds": 1}
PROMPT_TOKENS, K = 128, 5


def main() -> int:
    """Run the parts asked for; return 1 when one fails, 2 where there is no GPU."""
    parser = with_json(__doc__)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the rows there as a table")
    parser.add_argument("--engine", choices=CONFIGS, default="8b", help="size of the policy that is sampled")
    parser.add_argument("--policy", choices=CONFIGS, default="1.5b", help="size of the policy that is trained")
    parser.add_argument("--prompts", type=int, default=400, help=f"prompts to sample, {K} responses each")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens of each response")
    parser.add_argument("--pairs", type=int, default=64, help="pairs of a round of training")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of training and of PairRM")
    parser.add_argument("--only", choices=PARTS, help="run this part alone")
    arguments = parse(parser, SMALLEST)
    try:
        if arguments.markdown:
            check_target(arguments.markdown, "--markdown")
    except SparringError as error:
        parser.error(str(error))
    if not arguments.smallest and not ray_cluster.gpu_count():
        print("bench-gpu: nvidia-smi lists no GPU here; ARGS=--smallest tries the code on the CPU.", file=sys.stderr)
        return NO_GPU
    rows: list[Row] = []

    def kept(part: Callable[[argparse.Namespace, Path], list[Row]], folder: Path) -> list[Row]:
        found = part(arguments, folder)
        rows.extend(found)
        if arguments.markdown:
            write_target(arguments.markdown, markdown(rows))
        return found

    chosen = {name: partial(kept, part) for name, part in PARTS.items() if arguments.only in (None, name)}
    return run_parts("on one GPU", chosen, arguments.json)


def sampling(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Return an engine's tokens/s with and without reproducibility, and what it was estimated to do."""
    gpu, policy = not arguments.smallest, folder / "policy"
    shape_of(arguments.engine).save_pretrained(policy)  # no weights: vLLM makes random ones
    found = {}
    for reproducible in (True, False):
        asked = Sampling(
            prompts=arguments.prompts, prompt_tokens=PROMPT_TOKENS, k=K, max_tokens=arguments.max_tokens,
            reproducible=reproducible, gpu=gpu,
        )  # fmt: skip
        words = [str(policy), json.dumps(asdict(asked))]
        found[reproducible] = answer_of("_gpu_sampling", words, folder / f"{reproducible}.log")
    speed = {key: one["tokens"] / one["seconds"] for key, one in found.items()}
    case = f"{arguments.engine}, {arguments.prompts} prompts of {PROMPT_TOKENS}, {K} x {arguments.max_tokens} tokens"
    rows = [
        Row(case, "sampler.reproducible=false", speed[False], "tokens/s"),
        Row(case, "sampler.reproducible=true", speed[True], "tokens/s", "false", speed[True] / speed[False]),
        Row(case, "start of the engine, warm-up included", found[True]["start_s"], "s"),
    ]
    if card := accelerator():
        model = architecture(arguments.engine)
        expected = roofline.sampling_tokens_per_s(card, model, PROMPT_TOKENS, arguments.max_tokens, K)
        rows.append(Row(case, "measured", speed[False], "tokens/s", "estimated", speed[False] / expected))
    return rows


def pairrm(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Return the rows of benchmarks.annotate's passes, in a process of its own: its memory is free afterwards."""
    to = folder / "rows.json"
    size = ["--smallest"] if arguments.smallest else ["--prompts", "64", "--rounds", str(arguments.rounds)]
    run_to_end("annotate", ["--only", "passes", "--json", str(to), *size], folder / "log")
    return [Row(**row) for row in json.loads(to.read_text(encoding="utf-8"))]


def training(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Return our trainer's speed, its share of the GPU's peak, and its memory beside the plan's estimate."""
    gpu, name = not arguments.smallest, arguments.policy
    pairs = random_pairs(name, arguments.pairs, folder / "pairs")
    pairs = replace(pairs, rows=[replace(row, p_w=1.0, p_l=0.0, ref_w=-100.0, ref_l=-100.0) for row in pairs.rows])
    whole = (ray_cluster.gpu_memory_gib() or 0) >= FULL_CARD
    micro = GLOBAL_BATCH if whole or not gpu else 2
    options = {} if whole or not gpu else {"overrides": ["trainer.gradient_checkpointing=true"]}
    setting = Setting(kind="ours", pairs=pairs, micro_batch=micro, rounds=arguments.rounds, gpu=gpu, options=options)
    with loaded("_train_contender", ["ours"], {"ours": setting}, folder) as contenders:
        measured = [contenders["ours"].ask("", "") for _ in range(arguments.rounds)]
    seconds = statistics.median(one["seconds"] for one in measured)
    case = f"{name}, {len(pairs.rows)} pairs, {pairs.tokens:,} tokens, {micro} pairs a pass, AdamW"
    model = architecture(name)
    head = model.vocabulary * model.hidden
    responses = sum(len(row.chosen) + len(row.rejected) for row in pairs.rows)
    flops = 6 * ((model.weights - head) * measured[0]["computed"] + head * responses) / seconds
    chosen = memory.Training(workers=1, optimizer="adamw", micro_batch=micro, max_length=MAX_LENGTH)
    expected = sum(memory.training(model, chosen).values()) / memory.GIB
    peak = measured[-1]["peak_mb"] / 1024
    rows = [
        Row(case, "prompts and responses", pairs.tokens / seconds, "tokens/s"),
        Row(case, "model FLOP/s", flops / 1e12, "T/s"),
        Row(case, "peak memory", peak, "GiB", "plan's estimate", peak / expected),
    ]
    if card := accelerator():
        rows.append(Row(case, f"MFU, of {card.flops / 1e12:.0f} T/s", 100 * flops / card.flops, MFU, aim=45))
    return rows


PARTS = {"sampling": sampling, "pairrm": pairrm, "training": training}


def accelerator() -> roofline.Accelerator | None:
    """Return the data sheet of this machine's GPU; None without one, and of a GPU that roofline.py does not have."""
    named = " ".join(ray_cluster.gpu_names()).lower()
    return next((sheet for name, sheet in roofline.ACCELERATORS.items() if name in named), None)


def architecture(name: str) -> memory.Architecture:
    """Return what the arithmetic reads of a random policy; its embedding is its head."""
    shape = CONFIGS[name]
    hidden, size = shape["hidden_size"], shape["hidden_size"] // shape["num_attention_heads"]
    keys = size * shape["num_key_value_heads"]
    layer = 2 * hidden * (hidden + keys) + 3 * hidden * shape["intermediate_size"]
    weights = shape["num_hidden_layers"] * layer + VOCABULARY * hidden
    config = {**shape, "vocab_size": VOCABULARY}
    found = memory.architecture(config, weights)
    assert found is not None
    return found


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table that names the GPU."""
    machine = ray_cluster.hardware()
    place = ", ".join(ray_cluster.gpu_names()) or "no GPU"
    lines = [
        f"| {row.case} | {row.metric} | {number(row.value)} {row.unit} | {row.baseline or ''} | "
        f"{'' if row.ratio is None else f'{row.ratio:.2f}'} | {'' if row.aim is None else f'{row.aim:g}'} |"
        for row in rows
    ]
    head = ["| case | metric | value | baseline | ratio | aim |", "|---|---|---|---|---|---|"]
    return "\n".join(
        [f"`make bench-gpu` on {place}; {machine['cpu']}, {machine['cores']} cores", "", *head, *lines, ""]
    )


if __name__ == "__main__":
    sys.exit(main())
