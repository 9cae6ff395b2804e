"""The Open LLM Leaderboard's first six tasks through the package lm-eval, on a policy of a run.

    sparring judge lm_eval myrun --iter 3 --tasks arc_challenge,gsm8k --limit 100

The few-shot counts and metrics are the leaderboard's; its harness was an older one, and its figures may differ. lm-eval
fetches the tasks' data itself, through the hub's cache, and runs the model itself: `--model hf` or `vllm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparring.pipeline.cli.options import RUNS
from sparring.pipeline.cli.prepare import download
from sparring.pipeline.sources import Sources
from sparring.pipeline.suites.answer import Player, about, player_of
from sparring.pipeline.suites.results import About, Judged, Result, Score
from sparring.stages.errors import ConfigError, DataError

INSTALL = "pip install lm-eval (or sparring[lm-eval])"


class Task(NamedTuple):
    """A task as the leaderboard has it."""

    shots: int
    metric: str
    """The key in lm-eval's results: metric,filter."""


TASKS = {
    "arc_challenge": Task(25, "acc_norm,none"),
    "truthfulqa_mc2": Task(0, "acc,none"),
    "winogrande": Task(5, "acc,none"),
    "gsm8k": Task(5, "exact_match,strict-match"),
    "hellaswag": Task(10, "acc_norm,none"),
    "mmlu": Task(5, "acc,none"),
}
MODELS = ("hf", "vllm")


def judge(
    run: Path, *, iter: int | None, tasks: str | None, limit: int | None, model: str | None, runs: Path | None
) -> Judged:
    """Evaluate, print the table and return it."""
    names = tasks_of(tasks)
    model = model or "hf"
    if model not in MODELS:
        raise ConfigError(f"--model {model}: lm-eval runs the policy as {' or '.join(MODELS)}.")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: give the number of rows of each task, 1 or more.")
    require()
    player = player_of(str(run), runs or RUNS, iter)
    found = evaluated(model, model_arguments(model, folder_of(player), player), names, limit)
    figures = {"suite": "lm_eval", "model": player.name, "limit": limit, **found}
    print("\n".join(described(figures)))
    part = [] if set(names) == set(TASKS) else names
    stem = "-".join(["lm_eval", player.name, *part, *(["limit", str(limit)] if limit else [])])
    return Judged(figures, result_of(figures, about(player), f"lm-eval {model}"), player.folder / "answers", stem)


def result_of(figures: dict[str, Any], whose: About, by: str) -> Result:
    """Return the figures as the report shows them."""
    scores = {
        f"{name} ({one['shots']} shots, {one['metric']}), %": Score(value=one["value"], error=one["stderr"])
        for name, one in figures["tasks"].items()
    }
    if figures["average"] is not None:
        scores["average of the six, %"] = Score(value=figures["average"])
    limit = figures["limit"]
    notes = [f"the first {limit} rows of each task alone: not the published figures"] if limit else []
    return Result(
        suite="Open LLM Leaderboard tasks", judge=by, model=figures["model"], scores=scores, about=whose, notes=notes
    )


def require() -> None:
    """DataError, with what to do, when the package does not load here."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        what = "is not installed here" if error.name == "lm_eval" else f"does not load here ({error})"
        raise DataError(f"the leaderboard's tasks are run by the package lm-eval, which {what}: {INSTALL}.") from None


def tasks_of(given: str | None) -> list[str]:
    """Return the tasks to run, all of them by default."""
    names = list(dict.fromkeys(name.strip() for name in given.split(","))) if given is not None else list(TASKS)
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"--tasks {name}: choose of {','.join(TASKS)}.")
    return names


def by_shots(names: Sequence[str]) -> dict[int, list[str]]:
    """Return few-shot count -> tasks: one call of lm-eval for each."""
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(TASKS[name].shots, []).append(name)
    return found


def model_arguments(model: str, folder: Path, player: Player) -> dict[str, Any]:
    """Return what lm-eval loads the policy with: the precision is that of its files."""
    found: dict[str, Any] = {"pretrained": str(folder), "dtype": "auto"}
    if model == "vllm":
        hardware = player.config.hardware
        found["tensor_parallel_size"] = max(1, int(hardware.engine_gpus))
        found["gpu_memory_utilization"] = hardware.gpu_memory
    return found


def folder_of(player: Player) -> Path:
    """Return the policy's folder, its files verified; the base is fetched where it is not here."""
    if player.policy:
        return player.policy.folder()
    sources = Sources(player.pins)
    base = sources.policy(player.config.policy)
    if download([base]):
        base = sources.policy(player.config.policy)
    if not base.files:
        raise DataError("the base policy is not prepared here; run `make setup`.")
    return base.folder()


def evaluated(model: str, settings: dict[str, Any], names: Sequence[str], limit: int | None) -> dict[str, Any]:
    """Run the tasks, the model loaded once; return task -> value in points of 100, standard error, shots, metric."""
    import lm_eval
    from lm_eval.api.registry import get_model

    loaded = get_model(model).create_from_arg_obj(settings, {"batch_size": "auto"})
    found: dict[str, dict[str, Any]] = {}
    for shots, group in by_shots(names).items():
        answer = lm_eval.simple_evaluate(
            model=loaded, tasks=group, num_fewshot=shots, batch_size="auto", limit=limit, log_samples=False
        )
        for name in group:
            found[name] = _figure(name, answer["results"].get(name, {}))
    values = [found[name]["value"] for name in names]
    average = sum(values) / len(values) if set(names) == set(TASKS) else None
    return {"tasks": {name: found[name] for name in names}, "average": average}


def _figure(name: str, results: dict[str, Any]) -> dict[str, Any]:
    task = TASKS[name]
    metric, _, kind = task.metric.partition(",")
    if task.metric not in results:
        raise DataError(
            f"lm-eval gave no {task.metric} for {name}, but {', '.join(results) or 'nothing'}; use lm-eval 0.4."
        )
    error = results.get(f"{metric}_stderr,{kind}")
    points = 100 * float(error) if isinstance(error, int | float) else None
    return {"value": 100 * float(results[task.metric]), "stderr": points, "shots": task.shots, "metric": metric}


def described(figures: dict[str, Any]) -> list[str]:
    """Return the table: ± is a standard error, in points of 100."""
    lines = [f"Open LLM Leaderboard tasks: {figures['model']}"]
    for name, one in figures["tasks"].items():
        error = "" if one["stderr"] is None else f" ± {one['stderr']:.2f}"
        lines.append(f"  {name:<16}{one['shots']:>3} shots  {one['metric']:<12}{one['value']:>6.2f}{error}")
    if figures["average"] is not None:
        lines.append(f"  average of the six {figures['average']:.2f}")
    if figures["limit"]:
        lines.append(
            f"WARNING: the first {figures['limit']} rows of each task alone (--limit): not the published figures"
        )
    return lines
