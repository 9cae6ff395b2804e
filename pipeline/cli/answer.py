"""`sparring answer` and `sparring best-of-n`: what a run's policy answers to a suite, or to a file of prompts.

sparring answer alpaca_eval myrun --iter 3 sampling=official sampler.max_tokens=2048 prompts.max_tokens=2048
sparring best-of-n my_prompts.jsonl myrun --n 16        # or: answer … --best-of 16
sparring answer mt_bench myrun sampler.max_tokens=1024 prompts.max_tokens=3072
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Column, Run, Runs
from sparring.pipeline.suites import to_answer
from sparring.pipeline.suites.answer import answer_file, player_of, prompts_file
from sparring.stages.errors import ConfigError
from sparring.stages.fields import MOST_RESPONSES

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
    known = to_answer().get(suite)
    if known and known.answer:
        for option, given in (("--best-of", best_of > 1), ("--column", column is not None)):
            if given:
                raise ConfigError(f"{option}: is not an option of {suite}; leave it out.")
    player = player_of(run, runs, iteration, overrides)
    path = prompts_file(suite, instructions)
    if known and known.answer:
        known.answer(player, path, to)
        return
    to = answer_file(player, suite if known else path.stem, path, column, best_of, to)
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
