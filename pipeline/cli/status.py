"""`sparring status`: how a run is doing, once or until it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Run, Runs
from sparring.pipeline.cli.plan import print_plan
from sparring.pipeline.cli.prepare import plan_of
from sparring.pipeline.report.terminal import stdout_console
from sparring.pipeline.runs import run_history
from sparring.pipeline.runs.progress import Progress, StepProgress, Stream, events_file, progress_of
from sparring.stages.errors import Stopped
from sparring.stages.plain import printable, size_text

EVERY_S = 2.0
"""Seconds between two looks."""
AROUND = 12
"""Lines of the screen that are not of the steps, without workers and warnings."""


def status(
    run: Run = "default",
    watch: Annotated[bool, options.flag("--watch", "show it until the run ends, or until Ctrl-C")] = False,
    why: Annotated[bool, options.flag("--why", "list all steps of the plan, and why one is not done")] = False,
    runs: Runs = RUNS,
) -> None:
    """Show how a run is doing.

    Steps, workers and warnings, from whatever machine sees its folder. With --why the steps are those of the overrides
    that the run recorded when it began.

    Example: sparring status myrun --watch
    """
    arms = run_history.recorded(runs, run)
    stream, console = Stream(events_file(arms[0].folder)), stdout_console()
    if watch:
        with until_interrupted():
            _watch(runs, run, stream, console)
    else:
        console.print(_shown(progress_of(arms, stream), None))
    if why:
        print_plan(plan_of({one.arm: one.record.overrides for one in arms}, gpus=()), why, to_run=False)
    run_history.check_undamaged(run_history.recorded(runs, run))


@contextmanager
def until_interrupted() -> Iterator[None]:
    """End the block at Ctrl-C: the one who looks has seen enough, and the run goes on. SIGTERM ends the command."""
    try:
        yield
    except Stopped:
        raise
    except KeyboardInterrupt:
        pass


def _watch(runs: Path, run: str, stream: Stream, console: Console) -> None:
    """Show the run until it ends: on a terminal in place, else again whenever a step or the run changes its state."""
    seen: object = None
    with Live(console=console, auto_refresh=False) if sys.stdout.isatty() else nullcontext() as live:
        for now in _looks(runs, run, stream):
            if live:
                live.update(_shown(now, console.height), refresh=True)
            elif seen != (seen := (now.state, [step.state for step in now.session.steps.values()])):
                console.print(_shown(now, None))


def _looks(runs: Path, run: str, stream: Stream) -> Iterator[Progress]:
    while True:
        now = progress_of(run_history.recorded(runs, run), stream)
        yield now
        if not now.is_running:
            return
        time.sleep(EVERY_S)


def _shown(now: Progress, height: int | None) -> Group:
    """Return what is shown of a run; height: lines of the screen, None: all steps."""
    session = now.session
    states = [step.state for step in session.steps.values()]
    counts = f"{now.planned} steps, {now.made} made"
    if now.is_running:
        doing = f"{states.count('running')} running, {states.count('waiting')} waiting"
        counts += f", {doing}" if states else "; it prepares"
    lines = [headline(now), counts + _left(now)]
    parts: list[Text | Table] = [Text(printable(line)) for line in lines]
    others = len(session.workers) + len(session.warnings) + AROUND
    steps = _near(list(session.steps.values()), None if height is None else max(5, height - others))
    if steps:
        parts.append(_steps(steps, now))
    if session.workers and now.is_running:
        parts.append(_workers(now))
    parts += [Text(printable(f"{_clock(at)} {text}")) for at, text in session.warnings]
    return Group(*parts)


def headline(now: Progress) -> str:
    """Return the state of a run, and what it rests on."""
    text = f"run {now.name}: {now.state}"
    if now.holder and now.is_running:
        sign = "" if now.holder.here else f", last sign of life {now.holder.silent_s:.0f} s ago"
        return f"{text} (driver: {now.holder}{sign})"
    if now.holder:
        return f"{text}; its driver ({now.holder}) is gone. The command that began it resumes it."
    if now.state in ("stopped", "failed") and now.session.why:
        return f"{text}. {now.session.why}"
    return text if now.state == "finished" else f"{text}. The command that began it resumes it."


def _left(now: Progress) -> str:
    return "" if now.left_s is None else f"; about {_span(now.left_s)} left, one step after another"


def _near(steps: list[StepProgress], most: int | None) -> list[StepProgress]:
    """Return at most so many steps, those around the first that is not done."""
    if most is None or len(steps) <= most:
        return steps
    first = next((i for i, step in enumerate(steps) if step.state != "done"), len(steps))
    begin = max(0, min(first - most // 3, len(steps) - most))
    return steps[begin : begin + most]


def _steps(steps: list[StepProgress], now: Progress) -> Table:
    table = Table("step", "artifact", "state", "done", "rate", "left", box=None)
    for step in steps:
        state = "broken off" if step.state == "running" and not now.is_running else step.state
        left = step.left_s(now.now) if now.is_running and step.state != "done" else None
        spent = "" if step.seconds is None else f" in {_span(step.seconds)}"
        table.add_row(
            Text(printable(step.label)),
            Text(printable(step.name)),
            f"{state}{spent}",
            f"{step.done} of {step.of}" if step.of and step.state == "running" else "",
            f"{step.tokens_per_s:,.0f} tokens/s" if step.tokens_per_s and step.state == "running" else "",
            "" if left is None else _span(left),
        )
    return table


def _workers(now: Progress) -> Table:
    table = Table("worker of", "host", "pid", "rank", "memory", "GPUs", "in use there", box=None)
    for (host, pid), seen in now.session.workers.items():
        gpus, rank = seen.get("gpus") or [], seen.get("rank")
        table.add_row(
            Text(printable(str(seen.get("step", "")))),
            Text(printable(host)),
            str(pid),
            "" if rank is None else str(rank),
            _size(seen.get("memory")),
            Text(printable(", ".join(map(str, gpus)))),
            _size(seen.get("gpu_memory")),
        )
    return table


def _size(count: object) -> str:
    return size_text(count) if isinstance(count, int | float) else ""


def _span(seconds: float) -> str:
    """Return `40 s`, `12 min` or `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
