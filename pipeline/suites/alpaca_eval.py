"""AlpacaEval 2.0's judging: annotations that exist or are made now, then raw and length-controlled win rates.

The length-controlled fit joins the difficulty of an instruction by its place, so the rows are brought into the order of
the reference, or without one are taken to be in the suite's own.
"""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparring.pipeline.store.files import write_text
from sparring.pipeline.suites.base import PublicDataset, Suite, only_model, require
from sparring.pipeline.suites.results import Judged, Result, Score, about_of
from sparring.stages.errors import DataError
from sparring.stages.evaluate.suites import alpaca_eval
from sparring.stages.plain import printable
from sparring.stages.sample.messages import kind
from sparring.stages.sample.source import rows as rows_of

ANSWER_S = 20.0
"""A server that lists its models later than this does not answer."""

QUESTIONS = PublicDataset(
    title="AlpacaEval 2.0",
    repo="tatsu-lab/alpaca_eval",
    instructions="alpaca_eval_gpt4_baseline.json",
)
ROWS = 805
"""Of the suite, without all of which there is no length-controlled win rate."""

Row = dict[str, Any]


def judge(
    path: Path,
    *,
    reference: Path | None,
    annotator: str | None,
    base_url: str | None,
    model: str | None,
    annotations: Path | None,
    gamed: Path | None,
) -> Judged:
    """Print and return the figures of a file of outputs."""
    require("alpaca_eval", "AlpacaEval is judged by its package alpaca_eval", "alpaca_eval")
    outputs = read(path, ("instruction", "output", "generator"))
    if annotations:
        rows, who = _existing(path, outputs, annotations, reference), f"annotations of {annotations.name}"
    else:
        config = annotator or alpaca_eval.DEFAULT_ANNOTATOR
        settings = alpaca_eval.Annotator(config=config, base_url=base_url, model=model)
        rows, name = _annotated(path, outputs, reference, settings), alpaca_eval.named(config)
        who = f"{name} ({model})" if model else name
    if all(row["preference"] is None for row in rows):
        raise DataError(f"none of the {len(rows):,} rows has a preference: the annotator gave no answer that it reads.")
    figures: dict[str, Any] = {
        "suite": "alpaca_eval",
        "generator": rows[0]["generator_2"],
        "reference": rows[0]["generator_1"],
        "rows": len(rows),
        "not_annotated": sum(row["preference"] is None for row in rows),
        "empty": sum(not row["output_2"].strip() for row in rows),
        "length": sum(len(row["output_2"]) for row in rows) / len(rows),
        "reference_length": sum(len(row["output_1"]) for row in rows) / len(rows),
        **alpaca_eval.win_rate(rows),
    }
    notes = []
    if figures["not_annotated"]:
        notes.append(f"{figures['not_annotated']:,} rows have no preference and are left out of the figures")
    if figures["empty"]:
        notes.append(f"{figures['empty']:,} of the outputs are empty")
    print("\n".join([*_described(figures), *(f"WARNING: {note}" for note in notes)]))
    scores = {}
    if len(rows) == ROWS:
        figures |= alpaca_eval.length_controlled(rows, gamed or QUESTIONS.fetch("df_gamed.csv", "--gamed FILE"))
        controlled = Score(value=figures["length_controlled_winrate"], error=figures["lc_standard_error"])
        print(f"  length-controlled win rate {controlled.text}")
        scores["LC win rate, %"] = controlled
    else:
        print(f"  length-controlled: only of all {ROWS:,} instructions, in their order; these are {len(rows):,}")
        notes.append(f"of {len(rows):,} instructions, the suite has {ROWS:,}")
    scores["win rate, %"] = Score(value=figures["win_rate"], error=figures["standard_error"])
    scores["mean length, characters"] = Score(value=figures["length"])
    whose, generator = about_of(path), figures["generator"]
    result = None
    if whose:
        result = Result(suite=QUESTIONS.title, judge=who, model=generator, scores=scores, about=whose, notes=notes)
    return Judged(figures, result, path.parent, path.stem)


def _described(figures: dict[str, Any]) -> list[str]:
    """Return the lines of the raw win rate; ± is a standard error, of points of 100."""
    names = (printable(figures[name]) for name in ("generator", "reference"))
    title = QUESTIONS.title
    return [
        f"{title}: {' against '.join(names)}, {figures['n_total']:,} of {figures['rows']:,} rows annotated",
        f"  {figures['length']:,.0f} characters on average, the reference {figures['reference_length']:,.0f}",
        f"  won {figures['n_wins']:,}, lost {figures['n_wins_base']:,}, drawn {figures['n_draws']:,}",
        f"  win rate {figures['win_rate']:.2f} ± {figures['standard_error']:.2f}",
    ]


# The files


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a json or jsonl file, one for each instruction; DataError names row and key."""
    found: list[Row] = []
    for where, values in rows_of(path, columns):
        for name in columns:
            if name == "preference":
                _check_preference(values.get(name), f"{path}: {where}")
            elif not isinstance(values.get(name), str):
                raise DataError(f"{path}: {where}: {name} is {kind(values.get(name))}, not a text; mend the row.")
        found.append(values)
    if not found:
        raise DataError(f"{path}: holds no rows.")
    twice, times = Counter(row["instruction"] for row in found).most_common(1)[0]
    if times > 1:
        raise DataError(f"{path}: the instruction {twice[:60]!r} has {times} rows; leave one of them.")
    return found


def _check_preference(value: object, place: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{place}: preference is {value!r}, not a number or null; mend the row.")
    if value == value and value != 0 and not 1 <= value <= 2:
        raise DataError(f"{place}: preference is {value}, not in 1 (the baseline) to 2 (the model); mend the row.")


def in_order(rows: Sequence[Row], of: Sequence[Row], path: Path, other: Path) -> list[Row]:
    """Return rows in the order of the instructions of `of`; DataError where the two files ask different things."""
    by_instruction = {row["instruction"]: row for row in rows}
    for number, row in enumerate(of, start=1):
        if row["instruction"] not in by_instruction:
            raise DataError(
                f"{path}: the instruction of row {number} of {other}, {row['instruction'][:60]!r}, is not there; "
                "both must be of the same suite, whole."
            )
    if len(rows) > len(of):
        wanted = {row["instruction"] for row in of}
        extra = next(one for one in by_instruction if one not in wanted)
        raise DataError(f"{path}: the instruction {extra[:60]!r} is not in {other}; both must be of the same suite.")
    return [by_instruction[row["instruction"]] for row in of]


# Annotations


def _existing(outputs_path: Path, outputs: list[Row], path: Path, reference: Path | None) -> list[Row]:
    """Return the annotations of a file, in the order of the reference, else of the outputs."""
    columns = ("instruction", "output_1", "output_2", "preference")
    order, of = outputs, outputs_path
    if reference:
        of = reference
        order = read(of, ("instruction", "output"))
        outputs = in_order(outputs, order, outputs_path, of)
    annotations = in_order(read(path, columns), order, path, of)
    for number, (row, output) in enumerate(zip(annotations, outputs, strict=True), start=1):
        if row["output_2"].strip() != output["output"].strip():
            raise DataError(
                f"{path}: output_2 of {row['instruction'][:60]!r} is not the output of {outputs_path}, row "
                f"{number}: the annotations are of other answers."
            )
    return [_completed(row, output, "reference") for row, output in zip(annotations, outputs, strict=True)]


def _annotated(
    outputs_path: Path, outputs: list[Row], given: Path | None, annotator: alpaca_eval.Annotator
) -> list[Row]:
    """Annotate, and keep the annotations beside the outputs."""
    path = given or QUESTIONS.fetch(QUESTIONS.instructions, "--reference FILE")
    reference = read(path, ("instruction", "output"))
    outputs = in_order(outputs, reference, outputs_path, path)
    name = reference[0].get("generator") or path.stem
    if annotator.base_url:
        annotator = replace(annotator, model=served(annotator.base_url, annotator.model))
    beside = outputs_path.absolute().parent
    ours, theirs = _side(outputs, outputs[0]["generator"]), _side(reference, name)
    annotated = {row["instruction"]: row for row in alpaca_eval.annotate(theirs, ours, annotator, beside)}
    rows = [
        _completed({**annotated[output["instruction"]], "output_1": base["output"]}, output, name)
        for base, output in zip(reference, outputs, strict=True)
    ]
    to = beside / f"{outputs_path.stem}.annotations.json"
    write_text(to, json.dumps(rows, indent=2, ensure_ascii=False, default=str) + "\n")
    print(f"{to}: the annotations")
    return rows


def _side(rows: list[Row], generator: str) -> list[Row]:
    return [{"instruction": row["instruction"], "output": row["output"], "generator": generator} for row in rows]


def _completed(row: Row, output: Row, reference: str) -> Row:
    """Return an annotation with all that the package reads; a preference that is missing is None."""
    value = row.get("preference")
    return {
        **row,
        "output_2": output["output"],
        "preference": float(value) if isinstance(value, int | float) and value == value else None,
        "generator_1": row.get("generator_1") or reference,
        "generator_2": output["generator"],
    }


def served(url: str, wanted: str | None) -> str:
    """Return the model to ask a server for: the one wanted, or the only one it has."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/models", timeout=ANSWER_S) as answer:
            names = [str(one["id"]) for one in json.load(answer)["data"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--base-url {url}: no OpenAI-compatible server answers there ({error}).") from None
    return only_model(names, wanted, url)


SUITE = Suite(questions=QUESTIONS, judge=judge)
