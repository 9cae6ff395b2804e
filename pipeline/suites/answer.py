"""What a policy of a run answers to a file of prompts, in the file format of the leaderboards.

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
from typing import Any

from sparring.pipeline import config
from sparring.pipeline.config.model import Config
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.execution.executor import execute_alone
from sparring.pipeline.planning.iteration import Question, build_answers
from sparring.pipeline.planning.plan import Plan, inspect
from sparring.pipeline.runs import run_history
from sparring.pipeline.runs.references import ANSWERS
from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.sources import Sources, check_policy, fetch
from sparring.pipeline.store.files import check_target, make_folder, write_target
from sparring.pipeline.store.manifest import Artifact, Manifest, find
from sparring.pipeline.store.remote import folder_of, opened
from sparring.pipeline.suites import results, to_answer
from sparring.stages.annotate import best
from sparring.stages.annotate.rows import rows_by_id
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.sample import suite_prompts
from sparring.stages.step import Input

Response = dict[str, Any]
"""A row of `responses` of the step `sample`."""


@dataclass(frozen=True, kw_only=True)
class Player:
    """A policy of a run."""

    folder: Path
    """The run's."""
    name: str
    """`myrun-iter-3`."""
    iteration: int
    policy: Input | None
    """None: the base."""
    config: Config
    pins: dict[str, str]

    def about(self, best_of: int = 1) -> results.About:
        """Return whose answers those of this policy are."""
        policy = self.policy.digest if self.policy else None
        return results.About(iteration=self.iteration, policy=policy, best_of=best_of)

    def opened(self, manifest: Manifest) -> Input:
        """Return an artifact of the run's store, to read."""
        store = folder_of(self.config.paths.store)
        return Artifact(store, manifest.step, manifest.fingerprint).as_input(manifest.step, manifest)


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """A file of prompts, and how a policy answers them."""

    path: Path
    column: str
    n: int = 1
    """Samples of each prompt."""
    temperature: float | None = None
    """None: the configuration's."""


def player_of(run: str, runs: Path, iteration: int | None, overrides: Sequence[str] = ()) -> Player:
    """Return the policy of an iteration of the run: by default the last trained one; of iteration 0 the base."""
    history = run_history.open_run(runs, run)
    words = [*history.record.overrides, *overrides]
    gpus = ray_cluster.gpus_by_machine()
    chosen = config.load(config.detect_hardware(words, sum(gpus)), gpus)
    t, policy = (0, None) if iteration == 0 else _trained(history, iteration)
    return Player(
        folder=history.folder,
        name=f"{run.strip('/').replace('/', '-')}-iter-{t}",
        iteration=t,
        policy=policy,
        config=chosen,
        pins=history.record.pins,
    )


def _trained(history: RunHistory, iteration: int | None) -> tuple[int, Input]:
    trained = [t for t, steps in history.steps.items() if "train" in steps]
    if not trained:
        raise DataError(f"{history.folder}: no policy is trained yet; run on, or have the base answer with --iter 0.")
    t = max(trained) if iteration is None else iteration
    policy = history.artifact(t, "train") if t in trained else None
    if policy is None:
        raise DataError(f"--iter {t}: {history.folder} has policies of 0 (the base), {', '.join(map(str, trained))}.")
    return t, replace(policy, role="policy", root=policy.root.absolute())


def prompts_file(suite: str, instructions: Path | None) -> Path:
    """Return the file of prompts of a suite, or the file that `suite` names."""
    known = to_answer()
    if suite in known and (questions := known[suite].questions):
        return instructions or questions.fetch(questions.instructions, "--instructions FILE")
    path = Path(os.path.expanduser(suite))
    if instructions:
        raise ConfigError(f"--instructions: is for a suite ({', '.join(known)}), not for the file {path}.")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file, nor a suite of that name; suites: {', '.join(known)}.")
    return path


def answer_file(player: Player, title: str, path: Path, column: str | None, best_of: int, to: Path | None) -> Path:
    """Answer every row of a file, write the answers and say what is in them; return where they are.

    title: how the file of answers is named, where `to` does not name it.
    """
    column = suite_prompts.column_of(path, column)
    rows = list(suite_prompts.read(path, column))
    name = player.name + (f"-best-of-{best_of}" if best_of > 1 else "")
    to = writable(to, player.folder / "answers" / f"{title}-{name}.json")
    made = make(player, [PromptFile(path=path, column=column, n=best_of)])
    opened = {one.step: player.opened(one) for one in made}
    chosen = dict(best_responses(opened["sample"], opened.get("score"), player.config.win_rate))
    table = [
        {
            "dataset": row.values.get("dataset") or path.stem,
            "instruction": row.values[column],
            "output": chosen[row.id]["text"].strip() if row.id in chosen else "",
            "generator": name,
        }
        for row in rows
    ]
    write_target(to, json.dumps(table, indent=2, ensure_ascii=False) + "\n")
    results.write_about(to, player.about(best_of))
    given = [chosen[row.id] for row in rows if row.id in chosen]
    sample = next(one for one in made if one.step == "sample")
    drawn = ", ".join(
        f"{key}={sample.setting(f'sampler.{key}')}" for key in ("k", "temperature", "top_p", "max_tokens")
    )
    print(f"{to}: {len(given):,} answers to {len(rows):,} rows, {mean_characters(given)}")
    print(f"  {', '.join(one.name for one in made)} ({drawn})")
    print_cut(given)
    missing = [row.where for row in rows if row.id not in chosen]
    if missing:
        print(
            f"WARNING: {len(missing):,} of the rows have no answer, their output is empty; the first is {missing[0]}. "
            + dropped_prompts(made)
        )
    return to


def writable(given: Path | None, default: Path) -> Path:
    """Return the file to write, in a folder that is there; ConfigError before hours are spent."""
    to = given or default
    if given is None:
        make_folder("--runs", to.parent)
    check_target(to, "--to")
    return to


def make(player: Player, files: Sequence[PromptFile]) -> list[Manifest]:
    """Make what is missing of the answers to files, in one plan; return the manifests, in the files' order."""
    store = opened(player.config.paths.store)
    plan = _planned(player, files)
    if any(state.kind != "hit" for state in inspect(plan, store).values()):
        if fetch(plan.configs.values(), plan.externals.values()):
            plan = _planned(player, files)
        execute_alone(plan, store, player.folder.name, player.folder / ANSWERS)
    return [find(store, step.name)[1] for step in plan.steps.values()]


def _planned(player: Player, files: Sequence[PromptFile]) -> Plan:
    sources = Sources(player.pins)
    check_policy(player.config, sources.policy(player.config.policy))
    questions = [
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
    return build_answers(player.config, sources, *questions)


def best_responses(samples: Input, scores: Input | None, win_rate: str) -> Iterator[tuple[str, Response]]:
    """Yield (id, response): the first, or by the scores the one whose win rate among the samples is the highest."""
    for part in range(samples.n_parts):
        index = dict(best.chosen(samples, scores, part, win_rate)) if scores else {}
        for row_id, row in rows_by_id(samples, part, ["responses"]).items():
            yield row_id, row["responses"][index.get(row_id, 0)]


# What is said of answers


def mean_characters(responses: Sequence[Response]) -> str:
    """Return how long the responses are, in words."""
    mean = sum(len(one["text"].strip()) for one in responses) / max(1, len(responses))
    return f"{mean:,.0f} characters on average"


def print_cut(responses: Sequence[Response]) -> None:
    """Print how many responses were cut, and how many are empty, if any are."""
    cut = sum(one["finish"] == "length" for one in responses)
    empty = sum(not one["text"].strip() for one in responses)
    if cut or empty:
        print(f"  {cut:,} were cut at sampler.max_tokens, {empty:,} are empty")


def dropped_prompts(made: Sequence[Manifest]) -> str:
    """Return how many prompts were dropped and why, in words."""
    dropped: Counter[str] = Counter()
    for manifest in made:
        dropped.update(manifest.rows["dropped"])
    reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(dropped.items()) if reason != "duplicate")
    remedy = " prompts.max_tokens is too low." if dropped["too_long"] else ""
    return f"Prompts dropped: {reasons or 'none'}.{remedy}"
