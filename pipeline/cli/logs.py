"""`sparring logs`: what a run's driver, workers, training ranks and Ray wrote, the first error before all else."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Run, Runs
from sparring.pipeline.cli.status import headline, until_interrupted
from sparring.pipeline.execution.events import describe
from sparring.pipeline.runs import run_history
from sparring.pipeline.runs.logs import FOLDER, FirstError, Tail, first_error, last_lines, log_files
from sparring.pipeline.runs.progress import Progress, Stream, events_file, progress_of
from sparring.stages.errors import ConfigError
from sparring.stages.plain import printable

EVERY_S = 1.0
"""Seconds between two looks."""
SLACK_S = 60.0
"""A log that was last written so long before the run was begun is of an earlier start; clocks may differ as much."""


def logs(
    run: Run = "default",
    step: Annotated[
        str | None, options.value("STEP", "logs of this step alone: sample, sample_heldout or sample-1f2e3d4c")
    ] = None,
    follow: Annotated[bool, options.flag("--follow", "go on until the run ends, or until Ctrl-C")] = False,
    lines: Annotated[int, options.value("N", "last lines of each log")] = 20,
    runs: Runs = RUNS,
) -> None:
    """Show the logs of a run, the first error first.

    Then the last lines of every log: what the driver reported, workers, training ranks, Ray.

    Example: sparring logs myrun --step train --follow
    """
    if lines < 0:
        raise ConfigError(f"--lines {lines}: give 0 or more.")
    arms = run_history.recorded(runs, run)
    events = events_file(arms[0].folder)
    folder, stream = events.parent, Stream(events)
    now = progress_of(arms, stream)
    paths = [path for path in log_files(folder, step) if path.stat().st_mtime > now.session.began - SLACK_S]
    if step is not None and not paths:
        known = ", ".join(sorted({path.name for path in log_files(folder)})) or "none"
        raise ConfigError(
            f"--step {step}: since the run was begun no such step wrote a log; {folder / FOLDER}: {known}."
        )
    print(printable(headline(now)))
    _print_errors(paths, now)
    if step is None:
        _print_log(str(events), deque(_described(events.open("rb") if events.is_file() else ()), maxlen=lines))
    for path in paths:
        _print_log(f"{path}, {path.stat().st_size:,} bytes", last_lines(path, lines))
    if follow and now.is_running:
        with until_interrupted():
            _follow(runs, run, step, stream, paths)


def _print_errors(paths: Iterable[Path], now: Progress) -> None:
    """Print the first error: of the step that the run failed in where it did, else of the log that ended first."""
    errors = [error for path in paths if (error := first_error(path))]
    errors.sort(key=lambda error: not any(name in now.session.why for name in _steps_of(error, now)))
    for error in errors[:1]:
        print(f"first error: {error.path}:{error.lines[0].number}")
        for number, text in [*error.lines, *([error.last] if error.last else [])]:
            print(f"{number:>8}  {text}")
    for error in errors[1:]:
        print(f"also: {error.path}:{error.lines[0].number}  {(error.last or error.lines[-1]).text}")


def _steps_of(error: FirstError, now: Progress) -> list[str]:
    """Return the steps that a log may be of: a training's ranks write below a folder named by its attempt."""
    return [name for name, step in now.session.steps.items() if _is_of(error.path, name, step.attempt)]


def _is_of(path: Path, name: str, attempt: str) -> bool:
    return path.name.startswith(f"{name}-") or (bool(attempt) and path.parent.name.endswith(f".{attempt}"))


def _print_log(title: str, lines: Iterable[str]) -> None:
    print(f"==> {printable(title)} <==")
    for line in lines:
        print(line)


def _described(lines: Iterable[bytes | str]) -> Iterator[str]:
    """Yield what the driver reported, out of its events."""
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, RecursionError, AttributeError):
            event = json.loads(line)
            text = describe(event)
            if event["event"] in ("failed", "stopped"):
                text = printable(f"{event['event']}: {event['text']}")
            if text:
                yield f"{time.strftime('%H:%M:%S', time.localtime(event['time']))} {text}"


def _follow(runs: Path, run: str, step: str | None, stream: Stream, paths: Iterable[Path]) -> None:
    """Print what is appended until the run ends, each time under the name of its log."""
    tails = {path: Tail(path, new=False) for path in (stream.path, *paths)}
    last, running = None, True
    while running:
        running = progress_of(run_history.recorded(runs, run), stream).is_running  # before: what it wrote last is read
        for path in log_files(stream.path.parent, step):
            tails.setdefault(path, Tail(path, new=True))
        for path, tail in tails.items():
            for line in _described(tail.lines()) if path == stream.path else tail.lines():
                if path != last:
                    print(f"==> {printable(str(path))} <==")
                    last = path
                print(line, flush=True)
        if running:
            time.sleep(EVERY_S)
