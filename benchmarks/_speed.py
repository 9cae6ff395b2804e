"""Tokens/s of the contenders, interleaved: all stay loaded, one computes at a time, round after round."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from benchmarks import _jobs
from benchmarks._rounds import loaded, ratio
from benchmarks._table import Row
from sparring.pipeline.store.files import external
from sparring.stages.sample.config import SAMPLE
from sparring.stages.step import Job

ROUNDS = {
    "short": ("official", "bare", "ours", "transformers", "ours, no seeds", "bare, no seeds"),
    "long": ("official", "bare", "ours", "transformers", "ours, no seeds", "official, cached"),
}
"""case -> ways, in the order of a round."""
PROCESS = {"ours, no seeds": "unseeded", "bare, no seeds": "unseeded", "official, cached": "official"}
"""way -> the process it runs in, where that has another name."""
COMPARED: tuple[tuple[str, str, float | None, float | None], ...] = (
    ("ours", "bare", 0.95, 0.95),
    ("ours", "official", None, 1.5),
    ("ours", "official, cached", None, None),
    ("ours", "transformers", 3.0, 3.0),
    ("ours", "ours, no seeds", None, None),
    ("ours, no seeds", "bare, no seeds", None, None),
)
"""way, baseline, aim for short prompts, aim for long ones."""


def make_jobs(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Job], dict[str, float]]:
    """Return a job for each case, one shard each, and the mean length of its prompts."""
    policy = external("policy", _jobs.policy_of(arguments, folder))
    texts = {
        "warm": _jobs.short_texts(2),
        "short": _jobs.short_texts(arguments.prompts),
        "long": _jobs.long_texts(arguments.prompts),
    }
    rows = {case: _jobs.rendered(chosen, policy.root) for case, chosen in texts.items()}
    lengths = {case: [len(row["prompt_ids"]) for row in found] for case, found in rows.items()}
    longest = max(map(max, lengths.values())) + arguments.max_tokens
    jobs = {}
    for case, found in rows.items():
        prompts = _jobs.prompts_artifact(folder / case / "prompts", [found])
        tokens = 4 if case == "warm" else arguments.max_tokens
        chosen = _jobs.settings(longest, k=arguments.k, max_tokens=tokens, shard_rows=len(found))
        jobs[case] = _jobs.step_job(SAMPLE, chosen, [prompts, policy], folder / case / "out")
    return jobs, {case: statistics.mean(found) for case, found in lengths.items()}


def measure(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Load all contenders, run the rounds and return the rows: medians over the rounds."""
    jobs, lengths = make_jobs(arguments, folder)
    speeds: dict[str, dict[str, list[float]]] = {case: {} for case in ROUNDS}
    names = dict.fromkeys(PROCESS.get(way, way) for ways in ROUNDS.values() for way in ways)
    with loaded("_contender", names, jobs, folder) as contenders:
        for _ in range(arguments.rounds):
            for case, ways in ROUNDS.items():
                for way in ways:
                    found = contenders[PROCESS.get(way, way)].ask(way, case)
                    speeds[case].setdefault(way, []).append(found["tokens"] / found["seconds"])
    return [
        row for i, case in enumerate(ROUNDS) for row in _rows(f"{case}, {lengths[case]:.0f} tokens", speeds[case], i)
    ]


def _rows(case: str, speeds: dict[str, list[float]], number: int) -> list[Row]:
    medians = {way: statistics.median(found) for way, found in speeds.items()}
    rows = [Row(case, way, median, "tokens/s") for way, median in medians.items()]
    for way, baseline, *aims in COMPARED:
        if baseline in speeds:
            times = ratio(speeds[way], speeds[baseline])
            rows.append(Row(case, way, medians[way], "tokens/s", baseline, times, aims[number]))
    return rows
