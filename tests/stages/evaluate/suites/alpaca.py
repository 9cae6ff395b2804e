"""Where AlpacaEval's published annotations and weights lie, for the tests that have them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.data import published

GAMED = "df_gamed_equivalent.csv"
"""Stands in for df_gamed.csv: with the same sufficient statistics, LC agrees to hundredths."""
ANNOTATED = {"gemma-2b-it": (3.4019714381366457, 5.437453620377121), "vicuna-7b-v1.5": (4.797493939167703, 7.616892731)}
"""Model -> the leaderboard's raw and length-controlled win rate."""
WEIGHTED = {"SPPO-Mistral7B-PairRM": 30.494137965217423, "SPPO-Llama-3-Instruct-8B-PairRM": 38.56280663670214}


def data() -> Path:
    """The folder; the test is skipped where it is not there."""
    return published("alpaca_eval")


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a table."""
    with (data() / name).open(newline="") as file:
        return list(csv.DictReader(file))


def annotated(model: str) -> list[dict[str, Any]]:
    """The published annotations of a model."""
    found: list[dict[str, Any]] = json.loads((data() / model / "annotations.json").read_text())
    return found


def difficulty() -> NDArray[np.float64]:
    """(805,): of each instruction, in the suite's order."""
    return np.array([float(row["instruction_difficulty"]) for row in rows("instruction_difficulty_recovered.csv")])
