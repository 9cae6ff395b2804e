"""`sparring sync RUN --to TRACKER`: what a run recorded, fed to a tracker after the fact.

    sparring sync myrun --to tensorboard                # runs/myrun/tensorboard-sync, replaced on each call
    sparring sync myrun --to wandb --project alignment

Two axes: `train/step`, the optimizer steps of all iterations one after another, and `iteration`. A training's records
are those of its artifact, else, while it runs, those of the event stream; what an iteration came to is its manifests'.
An iteration's figures come once it is evaluated, so that the rows only grow at their end: W&B goes on with the same run
and ignores rows that it has; TensorBoard's folder, MLflow's run and trackio's are replaced.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import Annotated, Any, Protocol

from sparring.pipeline import run_history
from sparring.pipeline.artifact import Manifest
from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Run, Runs
from sparring.pipeline.diagnostics.panel import Panel, panels
from sparring.pipeline.report.crossplay import flat
from sparring.pipeline.run_history import RunHistory, Steps
from sparring.pipeline.staging import staged
from sparring.stages.errors import ConfigError, DataError, SparringError
from sparring.stages.train.config import tracked_name

TRAIN, ITERATION = "train/step", "iteration"
NAMED = {"train": "trained"}
"""Label -> how its summary is named: a training has figures of the same name for each of its steps, on another axis."""
NOT_METRICS = ("time", "step", "of", "done", "pid", "eta_s", "kind", "label", "event")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Numbers of one optimizer step, or of one iteration."""

    axis: str
    x: int
    time: float
    values: dict[str, float]


class Tracker(Protocol):
    """What a tracker must do: take rows in order, then end."""

    def write(self, index: int, row: Row) -> None: ...

    def close(self) -> str:
        """End, and say where it is."""


def run(
    to: Annotated[str, options.value("TRACKER", "tensorboard, wandb, mlflow or trackio")],
    run: Run = "default",
    project: Annotated[str | None, options.value("NAME", "its project or experiment there (default: sparring)")] = None,
    runs: Runs = RUNS,
) -> None:
    """Feed a tracker with a run's records, after the fact.

    Example: sparring sync myrun --to tensorboard
    """
    make = TRACKERS.get(to)
    if make is None:
        raise ConfigError(f"--to {to}: choose one of {', '.join(TRACKERS)}.")
    if find_spec(to) is None:
        raise ConfigError(f"--to {to}: it is not installed; pip install {to}.")
    if project and to == "tensorboard":
        raise ConfigError("--project: tensorboard has no projects; leave it out.")
    found = run_history.opened(runs, run)
    if not found.every:
        raise DataError(f"{found.folder}: nothing is made yet; `sparring run` goes on with it.")
    rows = list(rows_of(found))
    try:
        tracker = make(found, project or "sparring")
        for index, row in enumerate(rows):
            tracker.write(index, row)
        place = tracker.close()
    except Exception as error:  # another program's: a server, an account, a version
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SparringError(f"--to {to}: {first}") from None
    trained, played = (sum(row.axis == axis and row.x > 0 for row in rows) for axis in (TRAIN, ITERATION))
    print(f"{to}: optimizer steps: {trained}, iterations: {played}; in {place}")


def rows_of(found: RunHistory) -> Iterator[Row]:
    """Yield the rows of a run in the order in which they came to be."""
    seen, before = _events(found), 0
    measured = {panel.iteration: panel for panel in panels(found.every, found.store)}
    for t, steps in found.every.items():
        records = _training(found, t, seen)
        for step, record in sorted(records.items()):
            yield Row(axis=TRAIN, x=before + step, time=record["time"], values=numbers("train", record))
        before += max(records, default=0)
        if "evaluate" in steps or "sample_base" in steps:
            yield Row(axis=ITERATION, x=t, time=_created(steps), values=dict(_figures(steps, measured.get(t))))


def numbers(prefix: str, record: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record by name; yes and no are 1 and 0."""
    plain = {key: value for key, value in record.items() if key not in NOT_METRICS}
    found = {f"{prefix}/{tracked_name(key)}": float(v) for key, v in plain.items() if isinstance(v, int | float)}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _events(found: RunHistory) -> dict[str, dict[int, dict[str, Any]]]:
    """Return step name -> optimizer step -> its last record in the event stream, which all arms of a run share."""
    seen: dict[str, dict[int, dict[str, Any]]] = {}
    for folder in (found.folder, *found.folder.parents):
        path = folder / "events.jsonl"
        if path.is_file():
            for line in path.read_bytes().splitlines():
                with suppress(ValueError, KeyError, TypeError, RecursionError):  # the last one, while it is written
                    event = json.loads(line)
                    if event["event"] == "train_step" and isinstance(event["time"], int | float):
                        seen.setdefault(event["step"], {})[int(event["done"])] = event
            break
    return seen


def _training(found: RunHistory, t: int, seen: Mapping[str, dict[int, dict[str, Any]]]) -> dict[int, dict[str, Any]]:
    """Return optimizer step -> record; the artifact's where it is done, with the times of the stream.

    Labels in the stream do not say whose a training is, and arms may share one: its planned fingerprint does.
    """
    manifest = found.manifest(t, "train")
    if manifest is None:  # it goes on, or was stopped
        return seen.get(f"train-{found.planned.get(t, {}).get('train', '')[:8]}", {})
    streamed = seen.get(f"train-{manifest.fingerprint[:8]}", {})
    source = found.opened(t, "train")
    assert source is not None
    read = [json.loads(line) for line in source.file("metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    records = {int(record["step"]): record for record in read if "step" in record}
    last = _when(manifest)
    return {step: {"time": streamed.get(step, {}).get("time", last), **one} for step, one in records.items()}


def _figures(steps: Steps, panel: Panel | None) -> Iterator[tuple[str, float]]:
    """Yield name and value of what an iteration came to, with its collapse panel and the cross-play.

    None has the name of a figure of an optimizer step.
    """
    for label, manifest in steps.items():
        if label.startswith("score_"):
            continue
        yield from numbers(NAMED.get(label, label), manifest.summary).items()
        yield f"{NAMED.get(label, label)}/seconds", manifest.seconds
        if manifest.stats.get("tokens") and manifest.seconds:
            yield f"{NAMED.get(label, label)}/tokens_per_s", manifest.stats["tokens"] / manifest.seconds
    for label in ("evaluate", "evaluate_best"):
        for row in steps[label].summary["comparisons"] if label in steps else []:
            for key in ("win_rate", "low", "high"):
                if row[key] is not None:
                    yield f"{label}/{row['judge']}_vs_{row['opponent']}/{key}", row[key]
    for judge, game in steps["crossplay"].summary["judges"].items() if "crossplay" in steps else ():
        yield from ((f"crossplay/{judge}/{name}", value) for name, value in flat(game))
    for name, figure in panel.figures.items() if panel else ():
        yield f"panel/{tracked_name(name)}", figure.value


def _created(steps: Steps) -> float:
    return max(_when(manifest) for manifest in steps.values())


def _when(manifest: Manifest) -> float:
    try:
        return datetime.fromisoformat(manifest.made_with["created"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return 0.0


class TensorBoard:
    """Event files in the run's folder: written beside, then put in place of those of the last call."""

    def __init__(self, found: RunHistory, project: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.place = found.folder / "tensorboard-sync"
        self.staging = ExitStack()
        self.staged = self.staging.enter_context(staged(self.place))
        self.writer = SummaryWriter(str(self.staged))

    def write(self, index: int, row: Row) -> None:
        for name, value in row.values.items():
            self.writer.add_scalar(name, value, row.x, walltime=row.time)

    def close(self) -> str:
        self.writer.close()
        shutil.rmtree(self.place, ignore_errors=True)
        self.staged.rename(self.place)
        self.staging.close()
        return str(self.place)


class WeightsAndBiases:
    """One run, named by ours; rows that it has are ignored there."""

    def __init__(self, found: RunHistory, project: str) -> None:
        import wandb

        name = found.name.replace("/", "-")
        self.run = wandb.init(project=project, name=name, id=_identifier(found), resume="allow", config=found.config)
        for pattern, axis in (("train/*", TRAIN), ("*", ITERATION)):
            self.run.define_metric(pattern, step_metric=axis)

    def write(self, index: int, row: Row) -> None:
        self.run.log({row.axis: row.x, **row.values}, step=index)

    def close(self) -> str:
        self.run.finish()
        return str(self.run.url or self.run.dir)


class MLflow:
    """One run, named by ours, in place of that of the last call."""

    def __init__(self, found: RunHistory, project: str) -> None:
        import mlflow

        from sparring.stages.train.trainer.trackers import to_mlflow

        self.mlflow, tag = mlflow, _identifier(found)
        experiment = mlflow.set_experiment(project)
        for old in mlflow.search_runs([experiment.experiment_id], f"tags.sparring = '{tag}'", output_format="list"):
            mlflow.delete_run(old.info.run_id)
        mlflow.start_run(run_name=found.name, tags={"sparring": tag})
        to_mlflow(mlflow, found.config)

    def write(self, index: int, row: Row) -> None:
        client, active = self.mlflow.MlflowClient(), self.mlflow.active_run()
        metrics = [
            self.mlflow.entities.Metric(name, value, int(row.time * 1000), row.x) for name, value in row.values.items()
        ]
        client.log_batch(active.info.run_id, metrics=metrics)

    def close(self) -> str:
        where = f"{self.mlflow.get_tracking_uri()}, run {self.mlflow.active_run().info.run_id}"
        self.mlflow.end_run()
        return where


class Trackio:
    """One run, named by ours, in place of that of the last call."""

    def __init__(self, found: RunHistory, project: str) -> None:
        import trackio

        self.trackio, self.place = trackio, f"project {project}"
        name = found.name.replace("/", "-")
        with suppress(ValueError):  # there is no such project yet
            for old in [one for one in trackio.Api().runs(project) if one.name == name]:
                old.delete()
        quiet = {"auto_log_cpu": False, "auto_log_gpu": False, "embed": False}
        trackio.init(project=project, name=name, config=found.config, resume="never", **quiet)

    def write(self, index: int, row: Row) -> None:
        self.trackio.log({row.axis: row.x, **row.values}, step=index)

    def close(self) -> str:
        self.trackio.finish()
        return self.place


def _identifier(found: RunHistory) -> str:
    """Return the same short name for the same run folder."""
    from sparring.stages.fingerprint import digest

    return digest({"run": found.name, "folder": str(found.folder.absolute())})[:12]


TRACKERS: dict[str, Any] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}
"""Each: (run, project) -> Tracker."""
