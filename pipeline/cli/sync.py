"""`sparring sync RUN --to TRACKER`: what a run recorded, sent to a tracker afterwards.

sparring sync myrun --to tensorboard                # runs/myrun/tensorboard-sync, replaced on each call
sparring sync myrun --to wandb --project alignment
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Run, Runs
from sparring.pipeline.report.trackers import ITERATION, TRACKERS, TRAIN, metrics_of
from sparring.pipeline.runs import run_history
from sparring.stages.errors import ConfigError, DataError, SparringError, first_line


def sync(
    to: Annotated[str, options.value("TRACKER", "tensorboard, wandb, mlflow or trackio")],
    run: Run = "default",
    project: Annotated[
        str | None, options.value("NAME", "project, or experiment, of the tracker (default: sparring)")
    ] = None,
    runs: Runs = RUNS,
) -> None:
    """Feed a tracker with a run's records, after the fact.

    Example: sparring sync myrun --to tensorboard
    """
    feed = TRACKERS.get(to)
    if feed is None:
        raise ConfigError(f"--to {to}: choose one of {', '.join(TRACKERS)}.")
    if find_spec(to) is None:
        raise ConfigError(f"--to {to}: it is not installed; pip install {to}.")
    if project and to == "tensorboard":
        raise ConfigError("--project: tensorboard has no projects; leave it out.")
    history = run_history.open_run(runs, run)
    if not history.steps:
        raise DataError(f"{history.folder}: nothing is made yet; `sparring run` goes on with it.")
    rows = list(metrics_of(history))
    try:
        place = feed(history, project or "sparring", rows)
    except Exception as error:  # another program's: a server, an account, a version
        raise SparringError(f"--to {to}: {first_line(error)}") from None
    trained, played = (sum(row.axis == axis and row.x > 0 for row in rows) for axis in (TRAIN, ITERATION))
    print(f"{to}: optimizer steps: {trained}, iterations: {played}; in {place}")
