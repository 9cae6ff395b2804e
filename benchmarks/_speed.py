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

ROUND = (
    ("official", "official"),
    ("bare", "bare"),
    ("ours", "ours"),
    ("transformers", "transformers"),
    ("unseeded", "ours, no seeds"),
    ("unseeded", "bare, no seeds"),
    ("official", "official, cached"),
)
"""(process, way) in the order of a round."""
COMPARED: tuple[tuple[str, str, dict[str, float | None]], ...] = (
    ("ours", "bare", {"short": 0.95, "long": 0.95}),
    ("ours", "official", {"short": None, "long": 1.5}),
    ("ours", "official, cached", {"short": None, "long": None}),
    ("ours", "transformers", {"short": 3.0, "long": 3.0}),
    ("ours", "ours, no seeds", {"short": None, "long": None}),
    ("ours, no seeds", "bare, no seeds", {"short": None, "long": None}),
)
"""(way, baseline, aim of each case)."""


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
    speeds: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        names = dict.fromkeys(name for name, _ in ROUND)
        made = {name: running(name, folder / "jobs", folder / f"{name}.log") for name in names}
        contenders = {name: stack.enter_context(one) for name, one in made.items()}
        for contender in contenders.values():
            contender.answer()
        for _ in range(arguments.rounds):
            for case in ("short", "long"):
                for name, way in ROUND:
                    found = contenders[name].ask(way, case)
                    speeds.setdefault((case, way), []).append(found["tokens"] / found["seconds"])
    return [row for case in ("short", "long") for row in _rows(case, speeds, lengths[case])]


def _rows(case: str, speeds: dict[tuple[str, str], list[float]], length: float) -> list[Row]:
    name = f"{case}, {length:.0f} tokens"
    medians = {way: statistics.median(found) for (of, way), found in speeds.items() if of == case}
    rows = [Row(name, way, medians[way], "tokens/s") for _, way in ROUND]
    for way, baseline, aims in COMPARED:
        # Of each round's own: what else the machine does changes from round to round.
        ratio = statistics.median(a / b for a, b in zip(speeds[case, way], speeds[case, baseline], strict=True))
        rows.append(Row(name, way, medians[way], "tokens/s", baseline, ratio, aims[case]))
    return rows
