"""`sparring judge`: answers to a suite, judged by the suite's own rules.

sparring judge alpaca_eval runs/myrun/answers/alpaca_eval-myrun-iter-3.json
sparring judge alpaca_eval outputs.json --base-url http://node1:8000/v1 --model meta-llama/Llama-3.3-70B-Instruct
sparring judge alpaca_eval outputs.json --annotations annotations.json
sparring judge mt_bench answers.jsonl --judge-prompts judge_prompts.jsonl --reference gpt-4.jsonl --base-url URL
sparring judge lm_eval myrun --iter 3
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS
from sparring.pipeline.store.files import check_target, write_target
from sparring.pipeline.suites import results, suites, to_judge
from sparring.stages.errors import ConfigError


def judge(
    suite: Annotated[str, typer.Argument(help="alpaca_eval, mt_bench or lm_eval")],
    outputs: Annotated[Path, typer.Argument(parser=options.place, help="file that `answer` wrote; for lm_eval a run")],
    reference: Annotated[
        Path | None, options.path("FILE", "file of the baseline's outputs, or of reference answers")
    ] = None,
    questions: Annotated[Path | None, options.path("FILE", "MT-Bench's question.jsonl, in place of the hub's")] = None,
    judge_prompts: Annotated[Path | None, options.path("FILE", "MT-Bench's judge_prompts.jsonl")] = None,
    annotator: Annotated[
        str | None, options.value("CONFIG", "annotator of alpaca_eval: its name, folder or yaml")
    ] = None,
    base_url: Annotated[
        str | None, options.value("URL", "OpenAI-compatible server of the judge: http://host:8000/v1")
    ] = None,
    model: Annotated[
        str | None, options.value("NAME", "model of the judge on that server; for lm_eval: hf or vllm")
    ] = None,
    annotations: Annotated[
        Path | None, options.path("FILE", "file of existing annotations; no annotator is called")
    ] = None,
    gamed: Annotated[Path | None, options.path("FILE", "AlpacaEval's df_gamed.csv, in place of the hub's")] = None,
    iter: Annotated[
        int | None, options.value("T", "for lm_eval: iteration to judge (default: the last trained)")
    ] = None,
    tasks: Annotated[
        str | None, options.value("NAME,…", "for lm_eval: tasks such as arc_challenge (default: all six)")
    ] = None,
    limit: Annotated[int | None, options.value("N", "for lm_eval: rows of each task, for a trial")] = None,
    runs: Annotated[Path | None, options.path("FOLDER", "for lm_eval: folder of the runs (paths.runs)")] = None,
    to: options.Json = None,
) -> None:
    """Judge answers to a suite by its own rules.

    Example: sparring judge alpaca_eval outputs.json --annotations made.json
    """
    given = locals()  # the options by name
    chosen = to_judge(suite)
    read = chosen.options
    for name in {name for other in suites().values() for name in other.options}:
        if name not in read and given[name] is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: is not an option of {suite}; leave it out.")
    given["runs"] = runs or RUNS
    if to:
        check_target(to, "--json")
    assert chosen.judge is not None
    judged = chosen.judge(outputs, **{name: given[name] for name in read})
    if to:
        write_target(to, json.dumps(judged.figures, indent=2) + "\n")
    if judged.result:
        path = results.write(judged.folder, judged.stem, judged.result)
        print(f"{path}: `sparring report` shows it, if it lies in a run's answers")
