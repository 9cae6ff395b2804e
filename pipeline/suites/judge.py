"""`sparring judge`: answers to a suite, judged by the suite's own rules.

sparring judge alpaca_eval runs/myrun/answers/alpaca_eval-myrun-iter-3.json
sparring judge alpaca_eval outputs.json --base-url http://node1:8000/v1 --model meta-llama/Llama-3.3-70B-Instruct
sparring judge alpaca_eval outputs.json --annotations annotations.json
sparring judge mt_bench answers.jsonl --judge-prompts judge_prompts.jsonl --reference gpt-4.jsonl --base-url URL
sparring judge lm_eval myrun --iter 3
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparring.pipeline.cli import options
from sparring.pipeline.store.files import check_target, write_target
from sparring.pipeline.suites import JUDGES, results
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.step import resolve

Row = dict[str, Any]


def run(
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
    judge = JUDGES.get(suite)
    if judge is None:
        raise ConfigError(f"{suite}: no suite of that name; there are: {', '.join(JUDGES)}.")
    for name in {name for other in JUDGES.values() for name in other.options} - set(judge.options):
        if given[name] is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: is not an option of {suite}; leave it out.")
    if to:
        check_target(to, "--json")
    judged: results.Judged = resolve(judge.function)(outputs, **{name: given[name] for name in judge.options})
    if to:
        write_target(to, json.dumps(judged.figures, indent=2) + "\n")
    if judged.result:
        path = results.write(judged.folder, judged.stem, judged.result)
        print(f"{path}: `sparring report` shows it, if it lies in a run's answers")


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a json or jsonl file, one for each instruction; DataError names row and key."""
    from sparring.stages.sample.messages import kind
    from sparring.stages.sample.source import rows

    found: list[Row] = []
    for where, values in rows(path, columns):
        for name in columns:
            if name == "preference":
                _preference(values, f"{path}: {where}")
            elif not isinstance(values.get(name), str):
                raise DataError(f"{path}: {where}: {name} is {kind(values.get(name))}, not a text; mend the row.")
        found.append(values)
    if not found:
        raise DataError(f"{path}: holds no rows.")
    twice, times = Counter(row["instruction"] for row in found).most_common(1)[0]
    if times > 1:
        raise DataError(f"{path}: the instruction {twice[:60]!r} has {times} rows; leave one of them.")
    return found


def _preference(values: Row, place: str) -> None:
    value = values.get("preference")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise DataError(f"{place}: preference is {value!r}, not a number or null; mend the row.")
    if value is not None and value == value and value != 0 and not 1 <= value <= 2:
        raise DataError(f"{place}: preference is {value}, not in 1 (the baseline) to 2 (the model); mend the row.")


def in_order(rows: Sequence[Row], of: Sequence[Row], path: Path, other: Path) -> list[Row]:
    """Return rows in the order of the instructions of `of`; DataError where the two files ask different things."""
    known = {row["instruction"]: row for row in rows}
    for number, row in enumerate(of, start=1):
        if row["instruction"] not in known:
            raise DataError(
                f"{path}: the instruction of row {number} of {other}, {row['instruction'][:60]!r}, is not there; "
                "both must be of the same suite, whole."
            )
    if len(rows) > len(of):
        asked = {row["instruction"] for row in of}
        extra = next(one for one in known if one not in asked)
        raise DataError(f"{path}: the instruction {extra[:60]!r} is not in {other}; both must be of the same suite.")
    return [known[row["instruction"]] for row in of]
