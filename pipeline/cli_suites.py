"""The commands for suites of others: answer, judge, contamination."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

Command = Callable[[str, str, str], argparse.ArgumentParser]
"""(name, help, "module:function" of the orchestrator) -> its parser."""


def place(text: str) -> Path:
    """Return a file or a folder that was named on the command line, ~ expanded."""
    if not text or any(char < " " for char in text):
        raise argparse.ArgumentTypeError("name a file or a folder")
    return Path(os.path.expanduser(text))


def add_suites(command: Command) -> None:
    """Add them to the command line."""
    _add_answer(command)
    _add_judge(command)
    _add_contamination(command)


def _add_answer(command: Command) -> None:
    answer = command("answer", "Have a run's policy answer a suite or a file of prompts.", "suites.answer:run")
    answer.add_argument("--best-of", type=int, default=1, metavar="N", help="sample N, keep the oracle's best")
    best = command("best-of-n", "Answer as `answer` does, with the oracle's best of n.", "suites.answer:run")
    best.add_argument("--n", type=int, default=16, metavar="N", dest="best_of", help="samples a prompt (default 16)")
    for one in (answer, best):
        _add_asked(one)


def _add_asked(answer: argparse.ArgumentParser) -> None:
    answer.add_argument("suite", help="alpaca_eval, mt_bench, or a json, jsonl, parquet or csv file of prompts")
    answer.add_argument("run", help="a run, or an arm of one: myrun/experiment=sppo")
    answer.add_argument("--iter", type=int, metavar="T", help="the iteration, 0: the base (default: the last trained)")
    answer.add_argument("--to", type=place, metavar="FILE", help="write there (default: runs/RUN/answers/…)")
    answer.add_argument("--instructions", type=place, metavar="FILE", help="its instructions, instead of the hub's")
    answer.add_argument("--column", metavar="NAME", help="column of the prompts (default: instruction, prompt, …)")
    answer.add_argument("--runs", type=place, default="runs", help="folder of the runs (paths.runs)")
    answer.add_argument("overrides", nargs="*", help="what differs from the run, e.g. sampling=official")


def _add_judge(command: Command) -> None:
    judge = command("judge", "Judge answers to a suite by its own rules.", "suites.judge:run")
    judge.add_argument("suite", help="alpaca_eval, mt_bench or lm_eval")
    judge.add_argument("outputs", type=place, help="what `sparring answer` wrote; of lm_eval a run")
    judge.add_argument(
        "--reference", type=place, metavar="FILE", help="the baseline's outputs, or MT-Bench's reference answers"
    )
    judge.add_argument("--questions", type=place, metavar="FILE", help="question.jsonl, instead of the hub's")
    judge.add_argument("--judge-prompts", type=place, metavar="FILE", help="MT-Bench's judge_prompts.jsonl")
    judge.add_argument("--annotator", metavar="CONFIG", help="an annotator of the package, or a folder or yaml of one")
    judge.add_argument("--base-url", metavar="URL", help="an OpenAI-compatible server: http://host:8000/v1")
    judge.add_argument("--model", metavar="NAME", help="the model that it asks there; of lm_eval hf or vllm")
    judge.add_argument("--annotations", type=place, metavar="FILE", help="those that exist: no annotator is asked")
    judge.add_argument("--gamed", type=place, metavar="FILE", help="df_gamed.csv of the suite, instead of the hub's")
    judge.add_argument("--iter", type=int, metavar="T", help="of lm_eval: the iteration (default: the last trained)")
    judge.add_argument("--tasks", metavar="NAME,…", help="of lm_eval: arc_challenge,gsm8k,… (default: all six)")
    judge.add_argument("--limit", type=int, metavar="N", help="of lm_eval: rows of each task, for a try")
    judge.add_argument("--runs", type=place, help="of lm_eval: folder of the runs (paths.runs)")
    judge.add_argument("--json", type=place, metavar="FILE", help="write the figures there")


def _add_contamination(command: Command) -> None:
    overlap = command(
        "contamination",
        "Which rows of suites do the training prompts hold?",
        "suites.contamination:run",
    )
    overlap.add_argument("run", help="a run, or an arm of one")
    overlap.add_argument(
        "files", nargs="*", type=place, metavar="SUITE", help="alpaca_eval, …, or a file of one (default: all)"
    )
    overlap.add_argument("--n", type=int, default=13, metavar="N", help="words of an n-gram (default 13; 8 finds more)")
    overlap.add_argument("--column", metavar="NAME", help="column of the rows' text (default: instruction, prompt, …)")
    overlap.add_argument("--json", type=place, metavar="FILE", help="write the figures and all overlapping rows there")
    overlap.add_argument("--runs", type=place, default="runs", help="folder of the runs (paths.runs)")
