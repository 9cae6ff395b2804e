"""Tokens/s of the contenders, interleaved: all stay loaded, one computes at a time, round after round."""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import _jobs
from _process import HERE, environment
from _table import Row

from pipeline.artifact import external
from pipeline.job import Job
from stages.sample import embedded
from stages.sample.config import SAMPLE

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


class Contender:
    """A contender's process, and its answers."""

    def __init__(self, name: str, jobs: Path, log: Path) -> None:
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "_contender.py"), name, str(jobs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(),
            )
        self.name, self.log = name, log

    def answer(self) -> dict[str, Any]:
        """Return its next line; RuntimeError with the end of its log when it has ended."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the contender {self.name} ended:\n{self.log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, way: str, case: str) -> dict[str, Any]:
        """Have it run a round."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"way": way, "case": case}) + "\n")
        self.process.stdin.flush()
        return self.answer()


@contextmanager
def running(name: str, jobs: Path, log: Path) -> Iterator[Contender]:
    """Start a contender; it is gone afterwards."""
    contender = Contender(name, jobs, log)
    try:
        yield contender
    finally:
        contender.process.kill()
        contender.process.wait()


def make_jobs(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Job], dict[str, float]]:
    """Return a job for each case, one shard each, and the mean length of its prompts."""
    policy = external("policy", embedded.policy_path())
    texts = {
        "warm": _jobs.short_texts(2),
        "short": _jobs.short_texts(arguments.prompts),
        "long": _jobs.long_texts(arguments.prompts),
    }
    rows = {case: _jobs.rendered(chosen, policy.root) for case, chosen in texts.items()}
    lengths = {case: [len(row["prompt_ids"]) for row in found] for case, found in rows.items()}
    settings = _jobs.runtime(max(map(max, lengths.values())) + arguments.max_tokens)
    jobs = {}
    for case, found in rows.items():
        prompts = _jobs.prompts_artifact(folder / case / "prompts", [found])
        tokens = 4 if case == "warm" else arguments.max_tokens
        chosen = _jobs.identity(k=arguments.k, max_tokens=tokens, shard_rows=len(found))
        jobs[case] = _jobs.sample_job(SAMPLE, chosen, settings, [prompts, policy], folder / case / "out")
    return jobs, {case: statistics.mean(found) for case, found in lengths.items()}


def measure(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Load all contenders, run the rounds and return the rows: medians over the rounds."""
    jobs, lengths = make_jobs(arguments, folder)
    (folder / "jobs").write_bytes(pickle.dumps(jobs))
    speeds: dict[str, dict[str, list[float]]] = {case: {} for case in ROUNDS}
    with ExitStack() as stack:
        names = dict.fromkeys(PROCESS.get(way, way) for ways in ROUNDS.values() for way in ways)
        started = [stack.enter_context(running(name, folder / "jobs", folder / f"{name}.log")) for name in names]
        contenders = {contender.name: contender for contender in started}
        for contender in started:
            contender.answer()
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
            # Within each round: what else the machine does changes from round to round.
            ratio = statistics.median(a / b for a, b in zip(speeds[way], speeds[baseline], strict=True))
            rows.append(Row(case, way, medians[way], "tokens/s", baseline, ratio, aims[number]))
    return rows
