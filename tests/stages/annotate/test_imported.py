"""The step `pairs` out of imported samples: P as given, win rates as published, what is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparring.stages.annotate import imported
from sparring.stages.annotate.config import IMPORT_PAIRS
from sparring.stages.annotate.imported import Importer
from sparring.stages.annotate.pairs import PAIRS_SCHEMA
from sparring.stages.annotate.rows import shards
from sparring.stages.sample.imported import PAIRED_SCHEMA
from tests.artifacts import as_input, as_job, run_step

HARD = {"P": [0.5, 1.0, 0.0, 0.5], "win_rates": None, "chosen": 0, "rejected": 1}
ORIGIN = {"path": "f.jsonl", "rows": 9}


def sample(row_id: str, texts: list[str], **preference: Any) -> dict[str, Any]:
    responses = [{"text": text, "ids": list(range(len(text))), "finish": "stop"} for text in texts]
    return {
        "id": row_id,
        "messages": [{"role": "user", "content": row_id}],
        "prompt_ids": [1],
        "responses": responses,
        "preference": {**HARD, **preference},
    }


def run(folder: Path, *parts: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any], dict[str, Any]]:
    tables = [pa.Table.from_pylist(rows, schema=PAIRED_SCHEMA) for rows in parts]
    samples = as_input("samples", folder / "samples", tables, {"provenance": ORIGIN})
    job = as_job(IMPORT_PAIRS, {}, [samples], folder)
    found, made, summary = run_step(job, Importer(job), shards, imported.finish)
    assert all(table.schema == PAIRS_SCHEMA for table in found)
    return [row for table in found for row in table.to_pylist()], made, summary


def test_a_hard_preference_has_win_rates_of_three_quarters_and_one(tmp_path: Path) -> None:
    rows, parts, summary = run(tmp_path, [sample("a", ["long one", "no"])], [sample("b", ["yes", "no"])])
    assert [row["id"] for row in rows] == ["a", "b"] and len(parts) == 2
    for row in rows:
        assert (row["n"], row["chosen"], row["rejected"]) == (2, 0, 1)
        assert row["P"] == HARD["P"] and row["win_rates"] == [0.75, 0.25]
    assert IMPORT_PAIRS.version == 1, "raise it where the lines above change"
    assert (summary["pairs"], summary["mean_p_w"], summary["mean_p_l"]) == (2, 0.75, 0.25)
    assert summary["length_correlation"] > 0 and summary["provenance"] == ORIGIN


def test_published_win_rates_and_choices_stay(tmp_path: Path) -> None:
    p = np.array([[0.5, 0.2, 0.6], [0.8, 0.5, 0.7], [0.4, 0.3, 0.5]])
    full = {"P": p.ravel().tolist(), "win_rates": None, "chosen": 1, "rejected": 2}
    two = {"P": [0.5, 0.6, 0.4, 0.5], "win_rates": [0.9, 0.1]}
    rows, _, summary = run(tmp_path, [sample("a", ["x", "y", "z"], **full), sample("b", ["x", "y"], **two)])
    assert rows[0]["win_rates"] == pytest.approx([1.3 / 3, 2 / 3, 0.4], abs=1e-15)
    assert (rows[0]["chosen"], rows[0]["rejected"], rows[0]["P"]) == (1, 2, full["P"])
    assert rows[1]["win_rates"] == [0.9, 0.1] and rows[1]["P"] == two["P"]
    assert summary["mean_p_w"] == pytest.approx((2 / 3 + 0.9) / 2)


def test_rows_without_a_pair_are_counted(tmp_path: Path) -> None:
    rows, parts, summary = run(
        tmp_path,
        [
            sample("same", [" equal", "equal\n"]),
            sample("one", ["x", "y"], chosen=1, rejected=1),
            sample("tie", ["x", "y"], P=[0.5] * 4),
            sample("rates", ["x", "y"], win_rates=[0.4, 0.4]),
            sample("fine", ["x", "y"]),
        ],
    )
    assert [row["id"] for row in rows] == ["fine"]
    assert parts[0].dropped == {"identical": 1, "tie": 3} == summary["dropped"]
    assert parts[0].rows_in == summary["prompts"] == 5


def test_a_lost_duel_is_counted(tmp_path: Path) -> None:
    _, _, summary = run(tmp_path, [sample("a", ["x", "y"], P=[0.5, 0.3, 0.7, 0.5], win_rates=[0.6, 0.4])])
    assert summary["chosen_loses_head_to_head"] == 1
