"""The Open LLM Leaderboard's first six tasks through the package lm-eval, on a policy of a run.

    sparring judge lm_eval myrun --iter 3 --tasks arc_challenge,gsm8k --limit 100

The few-shot counts and metrics are the leaderboard's; its harness was an older one, and its figures may differ. lm-eval
fetches the tasks' data itself, through the hub's cache, and runs the model itself: `--model hf` or `vllm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparring.pipeline.sources import Sources, hub
from sparring.pipeline.suites.answer import Player, player_of
from sparring.pipeline.suites.base import Suite, require
from sparring.pipeline.suites.results import Judged, Result, Score
from sparring.stages.errors import ConfigError, DataError


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
    run: Path, *, iter: int | None, tasks: str | None, limit: int | None, model: str | None, runs: Path
) -> Judged:
    """Evaluate, print the table and return it."""
    names = list(dict.fromkeys(name.strip() for name in tasks.split(","))) if tasks is not None else list(TASKS)
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"--tasks {name}: choose of {','.join(TASKS)}.")
    model = model or "hf"
    if model not in MODELS:
        raise ConfigError(f"--model {model}: lm-eval runs the policy as {' or '.join(MODELS)}.")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: give the number of rows of each task, 1 or more.")
    require("lm_eval", "the leaderboard's tasks are run by the package lm-eval", "lm-eval")
    player = player_of(str(run), runs, iter)
    arguments: dict[str, Any] = {"pretrained": str(folder_of(player)), "dtype": "auto"}  # the precision of its files
    if model == "vllm":
        hardware = player.config.hardware
        arguments["tensor_parallel_size"] = max(1, int(hardware.engine_gpus))
        arguments["gpu_memory_utilization"] = hardware.gpu_memory
    found = evaluated(model, arguments, names, limit)
    values = [found[name]["value"] for name in names]
    average = sum(values) / len(values) if set(names) == set(TASKS) else None
    notes = [f"the first {limit} rows of each task alone: not the published figures"] if limit else []
    print(f"Open LLM Leaderboard tasks: {player.name}")
    scores = {}
    for name, one in found.items():
        scores[f"{name} ({one['shots']} shots, {one['metric']}), %"] = Score(value=one["value"], error=one["stderr"])
        error = "" if one["stderr"] is None else f" ± {one['stderr']:.2f}"
        print(f"  {name:<16}{one['shots']:>3} shots  {one['metric']:<12}{one['value']:>6.2f}{error}")
    if average is not None:
        scores["average of the six, %"] = Score(value=average)
        print(f"  average of the six {average:.2f}")
    for note in notes:
        print(f"WARNING: {note}")
    figures = {"suite": "lm_eval", "model": player.name, "limit": limit, "tasks": found, "average": average}
    result = Result(
        suite="Open LLM Leaderboard tasks",
        judge=f"lm-eval {model}",
        model=player.name,
        scores=scores,
        about=player.about(),
        notes=notes,
    )
    part = [] if average is not None else names
    stem = "-".join(["lm_eval", player.name, *part, *(["limit", str(limit)] if limit else [])])
    return Judged(figures, result, player.folder / "answers", stem)


def by_shots(names: Sequence[str]) -> dict[int, list[str]]:
    """Return few-shot count -> tasks: one call of lm-eval for each."""
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(TASKS[name].shots, []).append(name)
    return found


def folder_of(player: Player) -> Path:
    """Return the policy's folder, its files verified; the base is fetched where it is not here."""
    if player.policy:
        return player.policy.folder()
    sources = Sources(player.pins)
    base = sources.policy(player.config.policy)
    if hub.download_missing([base]):
        base = sources.policy(player.config.policy)
    if not base.files:
        raise DataError("the base policy is not prepared here; run `make setup`.")
    return base.folder()


def evaluated(
    model: str, arguments: dict[str, Any], names: Sequence[str], limit: int | None
) -> dict[str, dict[str, Any]]:
    """Run the tasks, the model loaded once; return task -> value in points of 100, standard error, shots, metric."""
    import lm_eval
    from lm_eval.api.registry import get_model

    loaded = get_model(model).create_from_arg_obj(arguments, {"batch_size": "auto"})
    found: dict[str, dict[str, Any]] = {}
    for shots, group in by_shots(names).items():
        answer = lm_eval.simple_evaluate(
            model=loaded, tasks=group, num_fewshot=shots, batch_size="auto", limit=limit, log_samples=False
        )
        for name in group:
            figures = answer["results"].get(name, {})
            metric, _, kind = TASKS[name].metric.partition(",")
            if TASKS[name].metric not in figures:
                raise DataError(
                    f"lm-eval gave no {TASKS[name].metric} for {name}, but {', '.join(figures) or 'nothing'}; use "
                    "lm-eval 0.4."
                )
            error = figures.get(f"{metric}_stderr,{kind}")
            found[name] = {
                "value": 100 * float(figures[TASKS[name].metric]),
                "stderr": 100 * float(error) if isinstance(error, int | float) else None,
                "shots": shots,
                "metric": metric,
            }
    return {name: found[name] for name in names}


SUITE = Suite(judge=judge)
