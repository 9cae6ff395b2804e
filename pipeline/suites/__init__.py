"""Suites of others that a policy is evaluated with: the table of them, and where their files come from.

A suite that a policy answers (`sparring answer`) names a file of instructions; one that is judged (`sparring judge`)
has a function here that does it. Nothing of a suite is shipped or trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is asked, and where to have it."""

    title: str
    rows: int
    repo: str
    """Dataset of the hub."""
    instructions: str
    """Its file of instructions, with the baseline's outputs."""
    judge: str
    """"module:function" that judges answers to it."""

    def fetch(self, name: str, instead: str) -> Path:
        """Return a file of the dataset; DataError says how to give it instead: `--reference FILE`."""
        from pipeline import hub

        try:
            return hub.dataset_file(self.repo, name)
        except DataError as error:
            raise DataError(
                f"{self.title}: {name} of the dataset {self.repo} is not here ({str(error).rstrip('.')}); "
                f"get it where the hub answers, and give it with {instead}."
            ) from None


SUITES = {
    "alpaca_eval": Suite(
        title="AlpacaEval 2.0",
        rows=805,
        repo="tatsu-lab/alpaca_eval",
        instructions="alpaca_eval_gpt4_baseline.json",
        judge="pipeline.suites.judge_alpaca_eval:judge",
    )
}
