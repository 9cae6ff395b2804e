"""`sparring answer`: what a run's policy says to a list of prompts, in the file format of the leaderboards.

    sparring answer alpaca_eval myrun --iter 3 sampling=official sampler.max_tokens=2048 prompts.max_tokens=2048
    sparring best-of-n my_prompts.jsonl myrun --n 16        # or: answer … --best-of 16
    sparring answer mt_bench myrun sampler.max_tokens=1024 prompts.max_tokens=3072

The run's own configuration, with what the overrides change, answers: the ordinary steps `prompts` and `sample`, and for
best-of-n `score`, whose argmax of the win rate is the answer, the first of equals. They are artifacts of the store: a
kill costs the shards in flight, and the same answers again are hits.

A row whose prompt was dropped (too long, or it broke its engine) keeps its place with an empty output, and is counted:
AlpacaEval joins the difficulty of an instruction by its place.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Column, Run, Runs
from sparring.pipeline.cli.prepare import fetch, load_config
from sparring.pipeline.config.model import Config
from sparring.pipeline.execution.executor import execute_alone
from sparring.pipeline.planning.iteration import Question, build_answers
from sparring.pipeline.planning.plan import Plan, inspect
from sparring.pipeline.runs import run_history
from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.sources import Sources, check_policy
from sparring.pipeline.store.files import check_target, make_folder, write_target
from sparring.pipeline.store.manifest import Artifact, Manifest, find
from sparring.pipeline.suites import SUITES, results
from sparring.stages.annotate.best import chosen as best_of
from sparring.stages.annotate.rows import rows_by_id
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.fields import MOST_RESPONSES
from sparring.stages.sample import suite_prompts
from sparring.stages.step import Input, resolve

Response = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Player:
    """A policy of a run."""

    folder: Path
    name: str
    """`myrun-iter-3`."""
    iteration: int
    policy: Input | None
    """None: the base."""
    config: Config
    pins: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class File:
    """What is asked of a policy, and how."""

    path: Path
    column: str
    n: int = 1
    """Samples of each prompt."""
    temperature: float | None = None
    """None: the configuration's."""


Suite = Annotated[str, typer.Argument(help="alpaca_eval, mt_bench, or a json, jsonl, parquet or csv file of prompts")]
Changed = Annotated[list[str], options.words("overrides that differ from the run's, e.g. sampling=official")]
Iteration = Annotated[
    int | None, options.value("T", "iteration whose policy answers, 0: the base (default: the last trained)", "--iter")
]
To = Annotated[Path | None, options.path("FILE", "file to write (default: runs/RUN/answers/…)")]
Instructions = Annotated[Path | None, options.path("FILE", "file of the suite's instructions, in place of the hub's")]


def answer(
    suite: Suite,
    run: Run,
    overrides: Changed,
    best_of: Annotated[int, options.value("N", "responses to sample, of which the oracle's best is kept")] = 1,
    iteration: Iteration = None,
    to: To = None,
    instructions: Instructions = None,
    column: Column = None,
    runs: Runs = RUNS,
) -> None:
    """Have a run's policy answer a suite or a file of prompts.

    Example: sparring answer alpaca_eval myrun --iter 3 sampling=official
    """
    if not 1 <= best_of <= MOST_RESPONSES:
        raise ConfigError(
            f"{best_of} samples of each prompt: give 1 to {MOST_RESPONSES} (--best-of; --n of best-of-n)."
        )
    known = SUITES.get(suite)
    answers_it = known.answer if known else None
    if answers_it:
        for option, given in (("--best-of", best_of > 1), ("--column", column is not None)):
            if given:
                raise ConfigError(f"{option}: is not an option of {suite}; leave it out.")
    player = player_of(run, runs, iteration, overrides)
    title, path = suite_of(suite, instructions)
    if answers_it:
        resolve(answers_it)(player, path, to)
        return
    column = suite_prompts.column_of(path, column)
    rows = list(suite_prompts.read(path, column))
    name = player.name + (f"-best-of-{best_of}" if best_of > 1 else "")
    to = target(to, player.folder / "answers" / f"{title}-{name}.json")
    made, samples, scores = answers(player, path, column, best_of)
    chosen = dict(best(samples, scores, player.config.win_rate))
    write_target(to, json.dumps(table(rows, column, chosen, path.stem, name), indent=2, ensure_ascii=False) + "\n")
    results.write_about(to, about(player, best_of))
    print("\n".join(described(to, rows, chosen, made)))
    if known:
        print(f"next: sparring judge {suite} {to}")


def best_of_n(
    suite: Suite,
    run: Run,
    overrides: Changed,
    n: Annotated[int, options.value("N", "responses to sample of each prompt")] = 16,
    iteration: Iteration = None,
    to: To = None,
    instructions: Instructions = None,
    column: Column = None,
    runs: Runs = RUNS,
) -> None:
    """Answer as `answer` does, with the oracle's best of n.

    Example: sparring best-of-n my_prompts.jsonl myrun --n 16
    """
    answer(suite, run, overrides, n, iteration, to, instructions, column, runs)


# Who answers what


def player_of(run: str, runs: Path, iteration: int | None, overrides: Sequence[str] = ()) -> Player:
    """Return the policy of an iteration of the run, the last trained one by default."""
    history = run_history.open_run(runs, run)
    words = [*history.record.overrides, *overrides]
    chosen = load_config(words)
    t, policy = _trained(history, iteration)
    return Player(
        folder=history.folder,
        name=f"{run.strip('/').replace('/', '-')}-iter-{t}",
        iteration=t,
        policy=policy,
        config=chosen,
        pins=history.record.pins,
    )


def about(player: Player, best_of: int = 1) -> results.About:
    """Return whose answers those of the player are."""
    policy = player.policy.digest if player.policy else None
    return results.About(iteration=player.iteration, policy=policy, best_of=best_of)


def _trained(history: RunHistory, number: int | None) -> tuple[int, Input | None]:
    """Return the iteration and its trained policy; None for the base, which is iteration 0."""
    if number == 0:
        return 0, None
    found = [t for t, steps in history.steps.items() if "train" in steps]
    if not found:
        raise DataError(f"{history.folder}: no policy is trained yet; run on, or have the base answer with --iter 0.")
    t = max(found) if number is None else number
    if t not in found:
        raise DataError(f"--iter {t}: {history.folder} has policies of 0 (the base), {', '.join(map(str, found))}.")
    policy = history.artifact(t, "train")
    assert policy is not None
    return t, replace(policy, role="policy", root=policy.root.absolute())


def suite_of(name: str, instructions: Path | None) -> tuple[str, Path]:
    """Return the name and the file of what is asked."""
    suite = SUITES.get(name)
    if suite is None:
        path = Path(os.path.expanduser(name))
        if instructions:
            raise ConfigError(f"--instructions: is for a suite ({', '.join(SUITES)}), not for the file {path}.")
        if not path.is_file():
            raise DataError(f"{path}: there is no such file, nor a suite of that name; suites: {', '.join(SUITES)}.")
        return path.stem, path
    return name, instructions or suite.fetch(suite.instructions, "--instructions FILE")


def target(given: Path | None, default: Path) -> Path:
    """Return the file to write, in a folder that is there; ConfigError before hours are spent."""
    to = given or default
    if given is None:
        make_folder("--runs", to.parent)
    check_target(to, "--to")
    return to


# The steps


def answers(player: Player, path: Path, column: str, n: int) -> tuple[list[Manifest], Input, Input | None]:
    """Make what is missing; return the manifests, the samples, and for n > 1 their scores."""
    made = make(player, [File(path=path, column=column, n=n)])
    opened = {one.step: opened_of(player, one) for one in made}
    return made, opened["sample"], opened.get("score")


def opened_of(player: Player, manifest: Manifest) -> Input:
    """Return an artifact of the player's store, to read."""
    store = Path(player.config.paths.store)
    return Artifact(store, manifest.step, manifest.fingerprint).as_input(manifest.step, manifest)


def make(player: Player, files: Sequence[File]) -> list[Manifest]:
    """Make what is missing of the answers to files, in one plan; return the manifests, in the files' order."""
    store = Path(player.config.paths.store)
    plan = _planned(player, files)
    if any(state.kind != "hit" for state in inspect(plan, store).values()):
        if fetch(plan):
            plan = _planned(player, files)
        execute_alone(plan, store, player.folder.name, player.folder / "answers" / "logs")
    return [find(store, step.name)[1] for step in plan.steps.values()]


def _planned(player: Player, files: Sequence[File]) -> Plan:
    chosen, sources = player.config, Sources(player.pins)
    check_policy(chosen, sources.policy(chosen.policy))
    asked = [
        Question(
            source=sources.imported(one.path, None),
            column=one.column,
            policy=player.policy,
            iteration=player.iteration,
            n=one.n,
            temperature=one.temperature,
        )
        for one in files
    ]
    return build_answers(chosen, sources, *asked)


# What they say


def best(samples: Input, scores: Input | None, win_rate: str) -> Iterator[tuple[str, Response]]:
    """Yield (id, response): the first, or by the scores the one whose win rate among the samples is the highest."""
    for part in range(samples.n_parts):
        index = dict(best_of(samples, scores, part, win_rate)) if scores else {}
        for row_id, row in rows_by_id(samples, part, ["responses"]).items():
            yield row_id, row["responses"][index.get(row_id, 0)]


def table(
    rows: list[suite_prompts.SuiteRow], column: str, chosen: dict[str, Response], dataset: str, generator: str
) -> list[dict[str, Any]]:
    """Return a row for each instruction, in their order; without the white space around an output, as leaderboards."""
    return [
        {
            "dataset": row.values.get("dataset") or dataset,
            "instruction": row.values[column],
            "output": chosen[row.id]["text"].strip() if row.id in chosen else "",
            "generator": generator,
        }
        for row in rows
    ]


def described(
    to: Path, rows: list[suite_prompts.SuiteRow], chosen: dict[str, Response], made: list[Manifest]
) -> list[str]:
    """Return the lines that `answer` ends with: how many, how long, what is cut, what is missing."""
    given = [chosen[row.id] for row in rows if row.id in chosen]
    characters = sum(len(one["text"].strip()) for one in given) / max(1, len(given))
    cut, empty = sum(one["finish"] == "length" for one in given), sum(not one["text"].strip() for one in given)
    sample = next(one for one in made if one.step == "sample")
    keys = ("k", "temperature", "top_p", "max_tokens")
    drawn = ", ".join(f"{key}={sample.setting(f'sampler.{key}')}" for key in keys)
    lines = [
        f"{to}: {len(given):,} answers to {len(rows):,} rows, {characters:,.0f} characters on average",
        f"  {', '.join(f'{one.step}-{one.fingerprint[:8]}' for one in made)} ({drawn})",
    ]
    if cut or empty:
        lines.append(f"  {cut:,} were cut at sampler.max_tokens, {empty:,} are empty")
    missing = [row.where for row in rows if row.id not in chosen]
    if missing:
        dropped = Counter({reason: n for one in made for reason, n in one.rows["dropped"].items()})
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(dropped.items()) if reason != "duplicate")
        lines.append(
            f"WARNING: {len(missing):,} of the rows have no answer, their output is empty; the first is {missing[0]}. "
            f"Prompts dropped: {reasons}." + (" prompts.max_tokens is too low." if dropped["too_long"] else "")
        )
    return lines
