"""The parts of the benchmark of annotation that are timed in rounds, each with its contenders."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _annotate_jobs, _jobs
from benchmarks._annotate_checkpoint import SIZE, SMALLEST, checkpoint
from benchmarks._annotate_contender import BATCHES
from benchmarks._annotate_jobs import Case
from benchmarks._annotate_standin import StandInScorer
from benchmarks._annotate_texts import Texts, samples_table, texts_of
from benchmarks._rounds import Contender, loaded, ratio
from benchmarks._table import Row
from sparring.pipeline.store.files import external
from sparring.stages.annotate import winrate
from sparring.stages.annotate.pairrm import CANDIDATE_MOST, SOURCE_MOST
from sparring.stages.sample import embedded

ONE, BEST, OURS, BF16, GATE = (
    "llm-blender, batch 1",
    "llm-blender, best batch",
    "ours",
    "ours, bf16",
    "embed and calibrate",
)
WAYS = {"speed": (ONE, BEST, OURS), "precision": (ONE, OURS, BF16), "embed": (OURS, GATE)}
"""part -> the ways that it compares."""
PROCESS = {ONE: "llm-blender", BEST: "llm-blender", OURS: "ours", BF16: "bf16", GATE: "gate"}
INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""Flags of a CPU that multiplies in bf16."""

SAME = 1e-9
"""Win rates this close are equal: those of equal texts, summed in another order."""

Answers = dict[str, list[dict[str, Any]]]
"""way -> what it answers, round after round."""


def measure(part: str, arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Load the contenders of a part of PARTS, run the rounds and return its rows."""
    texts = texts_of(arguments.texts, arguments.prompts, arguments.k)
    warm = Texts("warm", texts.prompts[:1], [["Yes.", "No, not at all."]])
    size = SMALLEST if arguments.smallest else SIZE
    cases = make_cases({"warm": warm, "short": texts.cut(2), "all": texts}, folder, size)
    ways = WAYS[part]
    rounds = 1 if BF16 in ways and not bf16_instructions() else arguments.rounds
    answers: Answers = {way: [] for way in ways}
    with loaded("_annotate_contender", dict.fromkeys(PROCESS[way] for way in ways), cases, folder) as contenders:
        best = fastest(contenders["llm-blender"], len(texts.prompts)) if BEST in ways else ONE
        for _ in range(rounds):
            for way in ways:
                answers[way].append(contenders[PROCESS[way]].ask(best if way == BEST else way, "all"))
    case = f"{texts.name}, {len(texts.prompts)} prompts, K={arguments.k}"
    if part == "speed":
        return _texts_rows(case, cases["all"], answers) + speed_rows(case, texts, answers, best)
    return precision_rows(case, texts.pairs, answers) if part == "precision" else embed_rows(case, answers)


def make_cases(texts: dict[str, Texts], folder: Path, size: Mapping[str, Any]) -> dict[str, Case]:
    """Write the checkpoint and the inputs of every case; pairs are of made-up logits, which cost calibrate the same."""
    from sparring.stages.annotate.pairs import Pairer

    everything = texts["all"]
    train = chain(_jobs.starter_texts(), everything.prompts, *everything.responses)
    judge = external("judge", checkpoint(folder, train, size))
    encoder = external("encoder", embedded.encoder_folder())
    cases = {}
    for name, chosen in texts.items():
        samples = _jobs.artifact("samples", folder / name / "samples", [samples_table(chosen)])
        score = _annotate_jobs.job("scores", [samples], folder / name / "made-up")
        scores, _ = _annotate_jobs.made(score, StandInScorer(score))
        pair = _annotate_jobs.job("pairs", [samples, scores], folder / name)
        pairs, _ = _annotate_jobs.made(pair, Pairer(pair))
        cases[name] = Case(chosen, samples, pairs, judge, encoder, folder / name)
    return cases


def fastest(blender: Contender, prompts: int) -> str:
    """Return llm-blender's fastest way with more than one prompt at once, tried on two responses of every prompt."""
    tried = [f"llm-blender, batch {batch}" for batch in BATCHES[1:] if batch < 2 * prompts or batch == 2]
    seconds = {way: blender.ask(way, "short")["seconds"] for way in tried}
    return min(seconds, key=lambda way: seconds[way])


def bf16_instructions() -> bool:
    """Return whether this machine's CPU multiplies in bf16."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and any(flag in info.read_text(encoding="utf-8").split() for flag in INSTRUCTIONS)


def speed_rows(case: str, texts: Texts, answers: Answers, best: str) -> list[Row]:
    """Return ordered pairs/s of each way, and ours over llm-blender's."""
    seconds = {way: _seconds(answers[way]) for way in WAYS["speed"]}
    speeds = {way: texts.pairs / statistics.median(found) for way, found in seconds.items()}
    passed = answers[OURS][0]["duels"] / texts.pairs
    rows = [Row(case, best if way == BEST else way, speed, "pairs/s") for way, speed in speeds.items()]
    for baseline, name, aim in ((ONE, ONE, 1.3), (BEST, best, 1.2)):
        times = ratio(seconds[baseline], seconds[OURS])
        rows.append(Row(case, "ours", speeds[OURS], "pairs/s", name, times, aim))
        rows.append(Row(case, "ours, of those passed", speeds[OURS] * passed, "pairs/s", name, times * passed))
    return rows


def precision_rows(case: str, pairs: int, answers: Answers) -> list[Row]:
    """Return the speed of bf16, and how far P and the ranks by win rate are from those of fp32."""
    has = bf16_instructions()
    case = f"{case}; {'bf16 instructions' if has else 'no bf16 instructions here'}"
    seconds = {way: _seconds(answers[way]) for way in WAYS["precision"]}
    speed = pairs / statistics.median(seconds[BF16])
    rows = [
        Row(case, BF16, speed, "pairs/s", baseline, ratio(seconds[baseline], seconds[BF16]), aim)
        for baseline, aim in ((ONE, 4.0 if has else None), (OURS, None))
    ]
    exact, rough = (preferences(answers[way][0]["logits"]) for way in (OURS, BF16))
    return rows + moved_rows(case, exact, rough)


def moved_rows(case: str, exact: Sequence[winrate.Array], rough: Sequence[winrate.Array]) -> list[Row]:
    """Return how far P in bf16 is from P in fp32: of pairs, of winners, of ranks by win rate."""
    errors, spread = moved(exact, rough)
    sure = np.concatenate([np.abs(p - 0.5)[np.triu_indices(len(p), 1)] for p in exact])
    turned = np.concatenate(
        [((p - 0.5) * (q - 0.5) < 0)[np.triu_indices(len(p), 1)] for p, q in zip(exact, rough, strict=True)]
    )
    win_rates = np.concatenate(
        [np.abs(winrate.win_rates(p) - winrate.win_rates(q)) for p, q in zip(exact, rough, strict=True)]
    )
    changed, of = rank_changes(exact, rough)
    return [
        Row(case, "spread of P in fp32 (standard deviation)", 100 * spread, "points of 100"),
        Row(case, "bf16 moves P, at most", 100 * float(errors.max()), "points of 100"),
        Row(case, "bf16 moves P, mean", 100 * float(errors.mean()), "points of 100"),
        Row(case, "bf16 moves a win rate, at most", 100 * float(win_rates.max()), "points of 100"),
        Row(case, "bf16 moves a win rate, mean", 100 * float(win_rates.mean()), "points of 100"),
        Row(case, f"pairs whose winner changes, of {len(turned)}", int(turned.sum()), "pairs"),
        Row(case, "their largest |P - 1/2| in fp32", 100 * float(sure[turned].max(initial=0)), "points of 100"),
        Row(case, f"responses whose rank by win rate changes, of {of}", changed, "responses"),
    ]


def embed_rows(case: str, answers: Answers) -> list[Row]:
    """Return the seconds of the gate's steps over those of scoring."""
    gate, scoring = _seconds(answers[GATE]), _seconds(answers[OURS])
    return [
        Row(case, "score", statistics.median(scoring), "s"),
        Row(case, GATE, statistics.median(gate), "s", "score", ratio(gate, scoring), 0.1),
    ]


def preferences(logits: Sequence[Sequence[float]]) -> list[winrate.Array]:
    """Return P (K, K) of each prompt from its raw logits, row by row."""
    return [winrate.preference_matrix(_debiased(row)) for row in logits]


def moved(exact: Sequence[winrate.Array], rough: Sequence[winrate.Array]) -> tuple[winrate.Array, float]:
    """Return |difference of P| of every pair i < j, and the standard deviation of the exact P, both orders."""
    above = [np.triu_indices(len(p), 1) for p in exact]
    values = np.concatenate([p[i] for p, i in zip(exact, above, strict=True)])
    errors = np.concatenate([np.abs(p - q)[i] for p, q, i in zip(exact, rough, above, strict=True)])
    return errors, float(np.sqrt(np.mean((values - 0.5) ** 2)))


def rank_changes(exact: Sequence[winrate.Array], rough: Sequence[winrate.Array]) -> tuple[int, int]:
    """Return how many responses change their rank by win rate, and of how many; equal win rates share a rank."""
    ranks = [[[int((p > one + SAME).sum()) for one in p] for p in map(winrate.win_rates, of)] for of in (exact, rough)]
    pairs = list(zip(chain(*ranks[0]), chain(*ranks[1]), strict=True))
    return sum(a != b for a, b in pairs), len(pairs)


def _texts_rows(case: str, made: Case, answers: Answers) -> list[Row]:
    """Return what the texts are like, and how far llm-blender's scores are from ours where both read them whole."""
    lengths = token_lengths(made)
    mean = statistics.mean(s + a + b for s, row in lengths for i, a in enumerate(row) for b in row[:i])
    scores = [
        (np.array(theirs), winrate.aggregate_scores(_debiased(ours)))
        for theirs, ours, size in zip(answers[ONE][0]["scores"], answers[OURS][0]["logits"], lengths, strict=True)
        if whole(*size)
    ]
    apart = [float(np.abs(a - b).max()) for a, b in scores]
    return [
        Row(case, "tokens of a pair, mean", mean, "tokens"),
        Row(case, "responses that repeat another of their prompt", 100 * made.texts.repeated, "%"),
        Row(
            case,
            f"scores apart at most, of {len(apart)} prompts that both read whole",
            1e6 * max(apart, default=0.0),
            "millionths",
        ),
    ]


def token_lengths(made: Case) -> list[tuple[int, list[int]]]:
    """Return the tokens of each prompt and of its responses as PairRM reads them: [CLS] marker text [SEP]."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(made.judge.root, local_files_only=True, trust_remote_code=False)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) + 1 for ids in words(list(texts))["input_ids"]]

    return list(zip(count(made.texts.prompts), map(count, made.texts.responses), strict=True))


def whole(source: int, responses: Sequence[int]) -> bool:
    """Return whether llm-blender with one prompt at once cuts no text; then neither do we."""
    return source <= SOURCE_MOST and max(responses) <= CANDIDATE_MOST + (SOURCE_MOST - source) // 2


def _seconds(answers: Sequence[dict[str, Any]]) -> list[float]:
    return [float(answer["seconds"]) for answer in answers]


def _debiased(row: Sequence[float]) -> winrate.Array:
    k = round(len(row) ** 0.5)
    logits = np.array(row, dtype=np.float64).reshape(k, k)
    return winrate.debiased_logits(logits, logits.T)


PARTS: dict[str, Callable[[argparse.Namespace, Path], list[Row]]] = {part: partial(measure, part) for part in WAYS}
"""part -> (arguments, folder) -> rows."""
