"""The contenders of training side by side: who takes part in which part, and the rows that come of it."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks._rounds import Contender, loaded, ratio
from benchmarks._table import MFU, Row
from benchmarks._train_pairs import GLOBAL_BATCH, Pairs, Setting

DEFAULTS, BEST, OURS, REFERENCE = "TRL, defaults", "TRL, best", "ours", "reference"
LEAN_MICRO = 2
LEAN = f"ours, {LEAN_MICRO} pairs a pass"
BATCHES = (1, 2, 4, 8)
"""Pairs of a forward pass that TRL's best is looked for among; always 8 of an optimizer step."""
TUNED: dict[str, Any] = {
    "gradient_checkpointing": False,
    "precompute_ref_log_probs": True,
    "train_sampling_strategy": "group_by_length",
    "remove_unused_columns": False,
}
"""What TRL offers a CPU: padding_free is switched off in 1.16, Liger needs a GPU. Lengths are an unused column."""
ON_GPU: dict[str, dict[str, Any]] = {
    "flash_attn": {"model_init_kwargs": {"attn_implementation": "flash_attention_2"}},
    "liger_kernel": {"use_liger_kernel": True},
}
"""And a GPU, where the package is installed. Not tried yet."""
PLAIN: dict[str, Any] = {**TUNED, "train_sampling_strategy": "sequential"}
PARITY_STEPS, PARITY_MICRO = 3, 2
"""Optimizer steps, and pairs of a forward pass."""

H100_FLOPS = 989e12

Answers = dict[str, list[dict[str, Any]]]
"""contender -> its measurements, a dict for each round."""


def measure(part: str, arguments: argparse.Namespace, pairs: Pairs, folder: Path) -> list[Row]:
    """Run a part of PARTS and return its rows."""
    prompts = sum(len(row.prompt) for row in pairs.rows)
    case = f"{len(pairs.rows)} pairs, {pairs.tokens} tokens, {200 * prompts / pairs.tokens:.0f}% of them prompts"
    if arguments.adapter != "off":
        case = f"{arguments.adapter}, {case}"
    scoring = Setting(kind="reference", pairs=pairs, micro_batch=1, rounds=0, gpu=arguments.gpu)
    with _one(REFERENCE, scoring, folder) as scorer:
        scored = with_reference(pairs, scorer.ask("", "")["scores"])
        return PARTS[part](Bench(scored, folder, scorer, arguments), case)


def with_reference(pairs: Pairs, scores: Sequence[Sequence[float]]) -> Pairs:
    """Return the pairs with hard targets and the reference's log-probs."""
    rows = [
        replace(row, p_w=1.0, p_l=0.0, ref_w=ref_w, ref_l=ref_l)
        for row, (ref_w, ref_l) in zip(pairs.rows, scores, strict=True)
    ]
    return replace(pairs, rows=rows)


class Bench:
    """The pairs, the scorer of the reference, which stays loaded, and the options of the command line."""

    def __init__(self, pairs: Pairs, folder: Path, scorer: Contender, arguments: argparse.Namespace) -> None:
        self.pairs, self.folder, self.scorer, self.arguments = pairs, folder, scorer, arguments
        self.common = {"pairs": pairs, "rounds": arguments.rounds, "gpu": arguments.gpu, "adapter": arguments.adapter}

    def on(self, pairs: Pairs, rounds: int) -> Bench:
        """Return the same on other pairs, for so many rounds."""
        return Bench(pairs, self.folder, self.scorer, argparse.Namespace(**{**vars(self.arguments), "rounds": rounds}))

    def trl(self, micro_batch: int = GLOBAL_BATCH, options: Mapping[str, Any] | None = None) -> Setting:
        """Return the setting of TRL's trainer; options: arguments of DPOConfig."""
        return Setting(kind="trl", micro_batch=micro_batch, options=options or {}, **self.common)

    def ours(self, micro_batch: int | None = None, **options: Any) -> Setting:
        """Return the setting of our trainer."""
        return Setting(
            kind="ours", micro_batch=micro_batch or self.arguments.micro_batch, options=options, **self.common
        )

    def go(self, settings: Mapping[str, Setting], also: Sequence[str] = ()) -> Answers:
        """Load the contenders, one after another so that none disturbs what another does once, and go round."""
        measured: Answers = {name: [] for name in [*settings, *also]}
        with ExitStack() as stack:
            contenders = {name: stack.enter_context(_one(name, it, self.folder)) for name, it in settings.items()}
            for _ in range(self.arguments.rounds):
                for name, contender in (contenders | dict.fromkeys(also, self.scorer)).items():
                    measured[name].append(contender.ask("", ""))
        served = {one["served"] for name in settings for one in measured[name]}
        assert served == {self.pairs.tokens}, f"a round is {self.pairs.tokens} tokens, but contenders served {served}"
        return measured


@contextmanager
def _one(name: str, setting: Setting, folder: Path) -> Iterator[Contender]:
    place = folder / name.replace(" ", "-").replace(",", "")
    place.mkdir(exist_ok=True)
    with loaded("_train_contender", [name], {name: setting}, place) as found:
        yield found[name]


def parity(bench: Bench, case: str) -> list[Row]:
    """Return how far the losses of the first steps are apart on 8 pairs, and the log-probs before them."""
    eight = replace(bench.pairs, rows=bench.pairs.rows[:GLOBAL_BATCH])
    few = bench.on(eight, PARITY_STEPS - 1)
    measured = few.go({DEFAULTS: few.trl(PARITY_MICRO, PLAIN), OURS: few.ours(PARITY_MICRO)})
    theirs, ours = (measured[name][-1] for name in (DEFAULTS, OURS))
    passes = GLOBAL_BATCH // PARITY_MICRO
    losses = [  # of each optimizer step: the mean of its passes
        [statistics.mean(one["losses"][i : i + passes]) for i in range(0, len(one["losses"]), passes)]
        for one in (theirs, ours)
    ]
    case = f"{GLOBAL_BATCH} pairs, {eight.tokens} tokens"
    rows = [
        Row(case, f"step {step}: 2 x our loss from TRL's", 1e6 * abs(2 * b / a - 1), "millionths", aim=1000)
        for step, (a, b) in enumerate(zip(*losses, strict=True), 1)
    ]
    refs = [(row.ref_w, row.ref_l) for row in eight.rows]
    apart = max(abs(a - b) for x, y in zip(theirs["scores"], refs, strict=True) for a, b in zip(x, y, strict=True))
    moved = abs(losses[0][-1] / losses[0][0] - 1)
    return [
        *rows,
        Row(case, f"{PARITY_STEPS} steps move the loss by", 1e6 * moved, "millionths"),
        Row(case, "log-probs of the reference apart, at most", 1e6 * apart, "millionths of a nat"),
    ]


def speed(bench: Bench, case: str) -> list[Row]:
    """Return tokens/s, memory and the split of a step of TRL's defaults, its best and ours."""
    micro, steps = _fastest(bench), len(bench.pairs.rows) // GLOBAL_BATCH
    best = f"TRL, best (batch {micro})"
    theirs = {DEFAULTS: bench.trl(), best: bench.trl(micro, tuned(bench.arguments.gpu))}
    ours = {OURS: bench.ours(), LEAN: bench.ours(LEAN_MICRO)}
    settings = theirs | ours
    measured = bench.go(settings, also=[REFERENCE])
    tokens = bench.pairs.tokens
    seconds = {name: [one["seconds"] for one in answers] for name, answers in measured.items()}
    whole = dict(seconds)
    whole[best] = [one + measured[best][0]["precompute"] for one in seconds[best]]
    whole |= {name: [a + b for a, b in zip(seconds[name], seconds[REFERENCE], strict=True)] for name in ours}
    aims = {DEFAULTS: 1.5, best: 1.2}
    return [
        *_speed_rows(case, tokens, seconds, ours, aims),
        *_speed_rows(f"{case}; with the reference's pass", tokens, whole, ours, aims),
        *_computed_rows(case, measured, settings),
        *_memory_rows(case, measured, ours, theirs),
        *(mfu_rows(case, measured, bench.arguments.adapter, bench.pairs) if bench.arguments.gpu else ()),
        *(row for name in settings for row in split_rows(case, name, measured[name], steps)),
    ]


def _fastest(bench: Bench) -> int:
    """Return the batch of TRL's best: each is tried for a round, alone on the machine."""
    batches: list[int] = bench.arguments.batches
    if len(batches) == 1:
        return batches[0]
    tried, options = bench.on(bench.pairs, 1), tuned(bench.arguments.gpu)
    found = {micro: tried.go({BEST: tried.trl(micro, options)})[BEST][0]["seconds"] for micro in batches}
    return min(found, key=lambda micro: found[micro])


def tuned(gpu: bool) -> dict[str, Any]:
    """Return TRL's best settings on this hardware."""
    there = [options for package, options in ON_GPU.items() if gpu and find_spec(package)]
    return {**TUNED, **{name: value for options in there for name, value in options.items()}}


def _speed_row(
    case: str,
    name: str,
    tokens: int,
    seconds: Mapping[str, Sequence[float]],
    baseline: str | None = None,
    aim: float | None = None,
) -> Row:
    value = tokens / statistics.median(seconds[name])
    times = ratio(seconds[baseline], seconds[name]) if baseline else None
    return Row(case, name, value, "tokens/s", baseline, times, aim)


def _speed_rows(
    case: str, tokens: int, seconds: Mapping[str, Sequence[float]], ours: Iterable[str], aims: Mapping[str, float]
) -> list[Row]:
    """Return the baselines' speeds, and each of ours beside each of them."""
    beside = [_speed_row(case, name, tokens, seconds, other, aim) for name in ours for other, aim in aims.items()]
    return [*(_speed_row(case, other, tokens, seconds) for other in aims), *beside]


def _computed_rows(case: str, measured: Answers, names: Sequence[str] | Mapping[str, Any]) -> list[Row]:
    share = {name: 100 * measured[name][0]["computed"] / measured[name][0]["served"] for name in names}
    return [Row(case, f"{name}: tokens computed for those served", value, "%") for name, value in share.items()]


def _memory_rows(case: str, measured: Answers, ours: Iterable[str], theirs: Iterable[str]) -> list[Row]:
    peaks = {name: answers[-1]["peak_mb"] for name, answers in measured.items() if name != REFERENCE}
    before = {name: measured[name][-1]["loaded_mb"] for name in peaks}
    return [
        *(Row(case, f"{name}: memory before the first step", value, "MB") for name, value in before.items()),
        *(Row(case, f"{name}: peak memory", peaks[name], "MB") for name in theirs),
        *(
            Row(case, f"{name}: peak memory", peaks[name], "MB", other, peaks[name] / peaks[other], 0.7)
            for name in ours
            for other in theirs
        ),
    ]


def mfu_rows(case: str, measured: Answers, adapter: str, pairs: Pairs) -> list[Row]:
    """Return the FLOPs a second of ours, of what an H100 does in bf16 on dense matrices; in %.

    2 a weight and token computed forward, 2 for the gradient of what went in, 2 for that of trained weights; the head
    at the tokens of responses alone, attention's own products not counted.
    """
    sizes, answers = measured[DEFAULTS][0], measured[OURS]
    seconds = statistics.median(one["seconds"] for one in answers)
    responses = sum(len(row.chosen) + len(row.rejected) for row in pairs.rows)
    each = 6 if adapter == "off" else 4
    needed = each * (sizes["trunk"] * answers[0]["computed"] + sizes["head"] * responses)
    share = 100 * needed / seconds / H100_FLOPS
    return [Row(case, f"{OURS}: model FLOPs of an H100's {H100_FLOPS / 1e12:.0f} T/s", share, MFU, aim=45)]


def split_rows(case: str, name: str, answers: Sequence[Mapping[str, Any]], steps: int) -> list[Row]:
    """Return where a contender's optimizer step goes, medians over the rounds; what no part counts is `other`."""
    parts = {part: statistics.median(one["parts"][part] for one in answers) / steps for part in answers[0]["parts"]}
    inside = [part for part in parts if part.startswith("of it")]
    whole = statistics.median(one["seconds"] for one in answers) / steps
    other = whole - sum(seconds for part, seconds in parts.items() if part not in inside)
    shown = {"an optimizer step": whole, **parts, "other": other}
    return [
        Row(case, f"{name}: {part}", seconds, "s") for part, seconds in shown.items() if seconds or part not in inside
    ]


def _cost(*changes: str, shared: bool = True, without: str = "") -> Callable[[Bench, str], list[Row]]:
    """Return a part: ours with something, beside ours `without`; all are overrides of the configuration."""
    name = ", ".join([OURS, *changes, *(() if shared else ("each response after its own prompt",))])
    plain = f"{OURS}, {without}" if without else OURS

    def part(bench: Bench, case: str) -> list[Row]:
        changed = bench.ours(overrides=changes, shared=shared)
        measured = bench.go({plain: bench.ours(overrides=[without] if without else []), name: changed})
        seconds = {way: [one["seconds"] for one in answers] for way, answers in measured.items()}
        peaks = {way: answers[-1]["peak_mb"] for way, answers in measured.items()}
        tokens = bench.pairs.tokens
        return [
            _speed_row(case, plain, tokens, seconds),
            _speed_row(case, name, tokens, seconds, plain),
            *_computed_rows(case, measured, measured),
            Row(case, f"{plain}: peak memory", peaks[plain], "MB"),
            Row(case, f"{name}: peak memory", peaks[name], "MB", plain, peaks[name] / peaks[plain]),
        ]

    return part


PARTS: dict[str, Callable[[Bench, str], list[Row]]] = {
    "parity": parity,
    "speed": speed,
    "prompts": _cost(shared=False),
    "repulsion": _cost("repulsion=hinge"),
    "band": _cost("trainer.band_every=1", without="trainer.band_every=0"),
    "calibration": _cost("calibration=reward"),
}
