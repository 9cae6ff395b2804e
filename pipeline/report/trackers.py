"""What a run recorded, as metrics, and the trackers that they are sent to afterwards (`sparring sync`).

Two axes: `train/step`, the optimizer steps of all iterations one after another, and `iteration`. A training's records
are read from its artifact or, while it runs, from the event stream. An iteration's figures are sent once it is
evaluated, so that rows are only ever appended: W&B continues the same run and ignores rows that it has; TensorBoard's
folder, MLflow's run and trackio's are replaced.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sparring.pipeline.report.crossplay import flat
from sparring.pipeline.report.figures import FIGURES, Figures, WinRateSource, panel_figures
from sparring.pipeline.runs.panel import records_of
from sparring.pipeline.runs.run_history import RunHistory, Steps
from sparring.pipeline.store.manifest import Manifest
from sparring.pipeline.store.staging import staged
from sparring.stages.fingerprint import artifact_name, digest
from sparring.stages.train.config import tracked_name

TRAIN, ITERATION = "train/step", "iteration"
NAMES = {"train": "trained"}
"""Label -> how its summary is named: a training has figures of the same name for each of its steps, on another axis."""
NOT_METRICS = ("time", "step", "of", "done", "pid", "eta_s", "kind", "label", "event")


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Numbers of one optimizer step, or of one iteration."""

    axis: str
    x: int
    time: float
    values: dict[str, float]


def metrics_of(history: RunHistory) -> Iterator[Metrics]:
    """Yield the metrics of a run in the order in which they were made."""
    streamed, before = _events(history), 0
    panels = {panel.iteration: panel_figures(panel) for panel in history.panels}
    for t, steps in history.steps.items():
        records = _training(history, t, streamed)
        for step, record in sorted(records.items()):
            yield Metrics(axis=TRAIN, x=before + step, time=record["time"], values=numbers("train", record))
        before += max(records, default=0)
        if "evaluate" in steps or "sample_base" in steps:
            made = max(_when(manifest) for manifest in steps.values())
            yield Metrics(axis=ITERATION, x=t, time=made, values=dict(_figures(t, steps, panels.get(t, {}))))


def numbers(prefix: str, record: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record by name; yes and no are 1 and 0."""
    plain = {key: value for key, value in record.items() if key not in NOT_METRICS}
    named = {f"{prefix}/{tracked_name(key)}": float(v) for key, v in plain.items() if isinstance(v, int | float)}
    return {key: value for key, value in named.items() if math.isfinite(value)}


def _events(history: RunHistory) -> dict[str, dict[int, dict[str, Any]]]:
    """Return step name -> optimizer step -> its last record in the event stream, which all arms of a run share."""
    streamed: dict[str, dict[int, dict[str, Any]]] = {}
    for event in history.events():
        with suppress(ValueError, KeyError, TypeError):  # a damaged one
            if event["event"] == "train_step":
                streamed.setdefault(event["step"], {})[int(event["done"])] = event
    return streamed


def _training(
    history: RunHistory, t: int, streamed: Mapping[str, dict[int, dict[str, Any]]]
) -> dict[int, dict[str, Any]]:
    """Return optimizer step -> record; the artifact's where it is done, with the times of the stream.

    Labels in the stream do not say whose a training is, and arms may share one: its planned fingerprint does.
    """
    manifest = history.manifest(t, "train")
    if manifest is None:  # it goes on, or was stopped
        return streamed.get(artifact_name("train", history.record.planned.get(t, {}).get("train", "")), {})
    times = streamed.get(manifest.name, {})
    records = {int(record["step"]): record for record in records_of(history.steps[t], history.store)}
    last = _when(manifest)
    return {step: {"time": times.get(step, {}).get("time", last), **one} for step, one in records.items()}


def _figures(t: int, steps: Steps, panel: Figures) -> Iterator[tuple[str, float]]:
    """Yield name and value of an iteration's figures, with its collapse panel and the cross-play.

    None has the name of a figure of an optimizer step.
    """
    for label, manifest in steps.items():
        if label.startswith("score_"):
            continue
        name = NAMES.get(label, label)
        yield from numbers(name, manifest.summary).items()
        yield f"{name}/seconds", manifest.seconds
        if manifest.stats.get("tokens") and manifest.seconds:
            yield f"{name}/tokens_per_s", manifest.stats["tokens"] / manifest.seconds
    for source in FIGURES:
        if isinstance(source, WinRateSource) and (figure := source.figure(t, steps)):
            for key in ("win_rate", "low", "high"):
                if figure.value[key] is not None:
                    yield f"{source.label}/{source.judge}_vs_{source.opponent}/{key}", figure.value[key]
    for judge, game in steps["crossplay"].summary["judges"].items() if "crossplay" in steps else ():
        yield from ((f"crossplay/{judge}/{name}", value) for name, value in flat(game))
    for name, figure in panel.items():
        yield f"panel/{tracked_name(name)}", figure.value


def _when(manifest: Manifest) -> float:
    try:
        return datetime.fromisoformat(manifest.made_with["created"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return 0.0


def to_tensorboard(history: RunHistory, project: str, rows: Sequence[Metrics]) -> str:
    """Write event files beside the run's folder of them, then put them in place of those of the last call."""
    from torch.utils.tensorboard import SummaryWriter

    place = history.folder / "tensorboard-sync"
    with staged(place) as folder:
        writer = SummaryWriter(str(folder))
        for row in rows:
            for name, value in row.values.items():
                writer.add_scalar(name, value, row.x, walltime=row.time)
        writer.close()
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
    return str(place)


def to_wandb(history: RunHistory, project: str, rows: Sequence[Metrics]) -> str:
    """Go on with one run, named by ours; rows that it has are ignored there."""
    import wandb

    named = {"name": history.name.replace("/", "-"), "id": _identifier(history)}
    run = wandb.init(project=project, resume="allow", config=history.config, **named)
    for pattern, axis in (("train/*", TRAIN), ("*", ITERATION)):
        run.define_metric(pattern, step_metric=axis)
    for index, row in enumerate(rows):
        run.log({row.axis: row.x, **row.values}, step=index)
    run.finish()
    return str(run.url or run.dir)


def to_mlflow(history: RunHistory, project: str, rows: Sequence[Metrics]) -> str:
    """Write one run, named by ours, in place of that of the last call."""
    import mlflow

    from sparring.stages.train.trainer import trackers

    tag, experiment = _identifier(history), mlflow.set_experiment(project)
    for old in mlflow.search_runs([experiment.experiment_id], f"tags.sparring = '{tag}'", output_format="list"):
        mlflow.delete_run(old.info.run_id)
    mlflow.start_run(run_name=history.name, tags={"sparring": tag})
    trackers.to_mlflow(mlflow, history.config)
    client, active = mlflow.MlflowClient(), mlflow.active_run().info.run_id
    for row in rows:
        at = (int(row.time * 1000), row.x)
        metrics = [mlflow.entities.Metric(name, value, *at) for name, value in row.values.items()]
        client.log_batch(active, metrics=metrics)
    mlflow.end_run()
    return f"{mlflow.get_tracking_uri()}, run {active}"


def to_trackio(history: RunHistory, project: str, rows: Sequence[Metrics]) -> str:
    """Write one run, named by ours, in place of that of the last call."""
    import trackio

    name = history.name.replace("/", "-")
    with suppress(ValueError):  # there is no such project yet
        for old in [one for one in trackio.Api().runs(project) if one.name == name]:
            old.delete()
    quiet = {"auto_log_cpu": False, "auto_log_gpu": False, "embed": False}
    trackio.init(project=project, name=name, config=history.config, resume="never", **quiet)
    for index, row in enumerate(rows):
        trackio.log({row.axis: row.x, **row.values}, step=index)
    trackio.finish()
    return f"project {project}"


def _identifier(history: RunHistory) -> str:
    """Return the same short name for the same run folder."""
    return digest({"run": history.name, "folder": str(history.folder.absolute())})[:12]


TRACKERS: dict[str, Callable[[RunHistory, str, Sequence[Metrics]], str]] = {
    "tensorboard": to_tensorboard,
    "wandb": to_wandb,
    "mlflow": to_mlflow,
    "trackio": to_trackio,
}
"""Each takes the metrics in order and returns where they are."""
