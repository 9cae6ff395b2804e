"""Where AlpacaEval's published annotations lie, for the tests that have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.data import published

GAMED = "df_gamed_equivalent.csv"
"""Stands in for df_gamed.csv: with the same sufficient statistics, LC agrees to hundredths."""
ANNOTATED = {"gemma-2b-it": (3.4019714381366457, 5.437453620377121), "vicuna-7b-v1.5": (4.797493939167703, 7.616892731)}
"""Model -> the leaderboard's raw and length-controlled win rate."""


def data() -> Path:
    """The folder; the test is skipped where it is not there."""
    return published("alpaca_eval")


def annotated(model: str) -> list[dict[str, Any]]:
    """The published annotations of a model."""
    found: list[dict[str, Any]] = json.loads((data() / model / "annotations.json").read_text())
    return found
