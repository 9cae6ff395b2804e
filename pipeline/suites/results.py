"""What suites found of a run, as files beside its answers, which `sparring report` reads.

    <answers>.about.json        whose answers they are: iteration, digest of the policy, best of how many
    <answers>.<judge>.results.json   a suite's figures of them
    contamination.json          what the training prompts share with suites, by suite and n

A file of answers from elsewhere has no `about`, and no results are kept of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from sparring.pipeline.store.files import write_text
from sparring.stages.errors import first_line

RESULTS = ".results.json"
CONTAMINATION = "contamination.json"


@dataclass(frozen=True, kw_only=True)
class About:
    """Whose answers a file holds."""

    iteration: int
    """0: the base."""
    policy: str | None
    """Digest of the trained policy's bytes; None: the base."""
    best_of: int = 1


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure, with its standard error or its interval where it has one."""

    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """`28.53 ± 0.90`, `7.12 [6.80, 7.44]`, or the value alone."""
        if self.error is not None:
            return f"{self.value:.2f} ± {self.error:.2f}"
        if self.low is not None and self.high is not None:
            return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one suite found of one policy."""

    suite: str
    """`AlpacaEval 2.0`."""
    judge: str
    """Who judged, or what ran it."""
    model: str
    """The name of the policy in the file of answers."""
    scores: dict[str, Score]
    """Name of a figure, with its unit -> figure."""
    about: About
    notes: list[str] = field(default_factory=list)
    """What must stand beside the figures."""


class Judged(NamedTuple):
    """What a judge of a suite gives back."""

    figures: dict[str, Any]
    """All of them, as `--json` writes them."""
    result: Result | None
    """None: of answers that `sparring answer` did not make, which say nothing of a run."""
    folder: Path
    """Where the result is kept, under the name `stem`."""
    stem: str


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What one suite shares with the training prompts."""

    suite: str
    n: int
    """Words of an n-gram."""
    rows: int
    overlapping: int
    prompts: int
    """Training prompts that were compared."""
    of: str
    """What they are of, in words: `sampled in iterations 1, 2`."""


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """All that a run's folder of answers has."""

    results: list[Result]
    overlaps: list[Overlap]
    problems: list[str]
    """Files that could not be read, a line each."""


def write_about(answers: Path, about: About) -> None:
    """Say whose answers the file holds; a pipe or a device holds none."""
    if answers.is_file():
        write_text(_about_path(answers), json.dumps(asdict(about)) + "\n")


def about_of(answers: Path) -> About | None:
    """Return whose answers the file holds, None where nothing says it."""
    try:
        return TypeAdapter(About).validate_json(_about_path(answers).read_bytes())
    except (OSError, ValidationError):
        return None


def _about_path(answers: Path) -> Path:
    return answers.with_name(f"{answers.stem}.about.json")


def write(folder: Path, stem: str, result: Result) -> Path:
    """Write a result as `stem` with its judge in `folder`, and return its path."""
    judge = re.sub(r"[^A-Za-z0-9.-]+", "-", result.judge).strip("-.")
    path = folder / f"{stem}.{judge}{RESULTS}"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(result), indent=2) + "\n")
    return path


def write_overlaps(folder: Path, overlaps: Sequence[Overlap]) -> Path:
    """Add overlaps to those of the run; one replaces that of the same suite and n."""
    path = folder / CONTAMINATION
    all_overlaps = {(one.suite, one.n): one for one in [*_read_overlaps(path), *overlaps]}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps([asdict(one) for one in all_overlaps.values()], indent=2) + "\n")
    return path


def _read_overlaps(path: Path) -> list[Overlap]:
    try:
        return TypeAdapter(list[Overlap]).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return []


def read(folder: Path) -> RunResults:
    """Return what lies in a folder of answers; what cannot be read is said, not dropped."""
    results, problems = [], []
    for path in sorted(folder.glob(f"*{RESULTS}")):
        try:
            results.append(TypeAdapter(Result).validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            problems.append(f"{path}: not a result of a suite ({first_line(error)}); judge again, or remove it.")
    path = folder / CONTAMINATION
    overlaps = _read_overlaps(path)
    if path.is_file() and not overlaps:
        problems.append(f"{path}: cannot be read; run `sparring contamination` again.")
    return RunResults(results=results, overlaps=overlaps, problems=problems)
