"""AlpacaEval 2.0's judging: annotations that exist or are made now, then raw and length-controlled win rates.

The length-controlled fit joins the difficulty of an instruction by its place, so the rows are brought into the order of
the reference, or without one are taken to be in the suite's own.
"""

from __future__ import annotations

import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparring.pipeline.store.files import write_text
from sparring.pipeline.suites import SUITES, Suite
from sparring.pipeline.suites.judge import Row, in_order, read
from sparring.pipeline.suites.results import About, Judged, Result, Score, about_of
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.evaluate.suites import alpaca_eval
from sparring.stages.plain import printable

ANSWER_S = 20.0
"""A server that lists its models later than this does not answer."""


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
    alpaca_eval.require()
    suite = SUITES["alpaca_eval"]
    outputs = read(path, ("instruction", "output", "generator"))
    if annotations:
        rows, who = _existing(path, outputs, annotations, reference), f"annotations of {annotations.name}"
    else:
        config = annotator or alpaca_eval.DEFAULT_ANNOTATOR
        asked = alpaca_eval.Annotator(config=config, base_url=base_url, model=model)
        rows, named = _annotated(path, outputs, reference, asked), alpaca_eval.named(config)
        who = f"{named} ({model})" if model else named
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
    print("\n".join(_described(figures, suite)))
    if len(rows) != suite.rows:
        print(f"  length-controlled: only of all {suite.rows:,} instructions, in their order; these are {len(rows):,}")
    else:
        figures |= alpaca_eval.length_controlled(rows, gamed or suite.fetch("df_gamed.csv", "--gamed FILE"))
        lc, error = figures["length_controlled_winrate"], figures["lc_standard_error"]
        print(f"  length-controlled win rate {lc:.2f} ± {error:.2f}")
    whose = about_of(path)
    return Judged(figures, result_of(figures, suite, whose, who) if whose else None, path.parent, path.stem)


def result_of(figures: dict[str, Any], suite: Suite, whose: About, by: str) -> Result:
    """Return the figures as the report shows them: LC win rate, win rate, length, as published ones are given."""
    scores = {}
    if "length_controlled_winrate" in figures:
        lc, error = figures["length_controlled_winrate"], figures["lc_standard_error"]
        scores["LC win rate, %"] = Score(value=lc, error=error)
    scores["win rate, %"] = Score(value=figures["win_rate"], error=figures["standard_error"])
    scores["mean length, characters"] = Score(value=figures["length"])
    return Result(
        suite=suite.title,
        judge=by,
        model=figures["generator"],
        scores=scores,
        about=whose,
        notes=_notes(figures, suite),
    )


def _notes(figures: dict[str, Any], suite: Suite) -> list[str]:
    """Return what must be said of the rows."""
    lines = []
    if figures["not_annotated"]:
        lines.append(f"{figures['not_annotated']:,} rows have no preference and are left out of the figures")
    if figures["empty"]:
        lines.append(f"{figures['empty']:,} of the outputs are empty")
    if figures["rows"] != suite.rows:
        lines.append(f"of {figures['rows']:,} instructions, the suite has {suite.rows:,}")
    return lines


def _described(figures: dict[str, Any], suite: Suite) -> list[str]:
    """Return the lines of the raw win rate; ± is a standard error, of points of 100."""
    names = (printable(figures[name]) for name in ("generator", "reference"))
    lines = [
        f"{suite.title}: {' against '.join(names)}, {figures['n_total']:,} of {figures['rows']:,} rows annotated",
        f"  {figures['length']:,.0f} characters on average, the reference {figures['reference_length']:,.0f}",
        f"  won {figures['n_wins']:,}, lost {figures['n_wins_base']:,}, drawn {figures['n_draws']:,}",
        f"  win rate {figures['win_rate']:.2f} ± {figures['standard_error']:.2f}",
    ]
    if figures["not_annotated"]:
        lines.append(f"WARNING: {figures['not_annotated']:,} rows have no preference and are left out of the figures")
    if figures["empty"]:
        lines.append(f"WARNING: {figures['empty']:,} of the outputs are empty")
    return lines


def _existing(outputs_path: Path, outputs: list[Row], path: Path, reference: Path | None) -> list[Row]:
    """Return the annotations of a file, in the order of the reference, else of the outputs."""
    columns = ("instruction", "output_1", "output_2", "preference")
    order, of = outputs, outputs_path
    if reference:
        of = reference
        order = read(of, ("instruction", "output"))
        outputs = in_order(outputs, order, outputs_path, of)
    found = in_order(read(path, columns), order, path, of)
    for number, (row, output) in enumerate(zip(found, outputs, strict=True), start=1):
        if row["output_2"].strip() != output["output"].strip():
            raise DataError(
                f"{path}: output_2 of {row['instruction'][:60]!r} is not the output of {outputs_path}, row "
                f"{number}: the annotations are of other answers."
            )
    return [_completed(row, output, "reference") for row, output in zip(found, outputs, strict=True)]


def _annotated(outputs_path: Path, outputs: list[Row], given: Path | None, asked: alpaca_eval.Annotator) -> list[Row]:
    """Annotate, and keep the annotations beside the outputs."""
    suite = SUITES["alpaca_eval"]
    path = given or suite.fetch(suite.instructions, "--reference FILE")
    reference = read(path, ("instruction", "output"))
    outputs = in_order(outputs, reference, outputs_path, path)
    name = reference[0].get("generator") or path.stem
    if asked.base_url:
        asked = replace(asked, model=served(asked.base_url, asked.model))
    beside = outputs_path.absolute().parent
    ours, theirs = _side(outputs, outputs[0]["generator"]), _side(reference, name)
    found = {row["instruction"]: row for row in alpaca_eval.annotate(theirs, ours, asked, beside)}
    rows = [
        _completed({**found[output["instruction"]], "output_1": base["output"]}, output, name)
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
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        there = printable(", ".join(names)) or "none"
        raise ConfigError(f"--model {wanted}: the server at {url} has {there}; name one of them.")
    return wanted
