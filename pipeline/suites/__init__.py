"""Suites of others that a policy is evaluated with: the tables of them, and where their files come from.

A suite that a policy answers (`sparring answer`) names a file of instructions; one that is judged (`sparring judge`)
has a function that does it. Nothing of a suite is shipped or trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from sparring.stages.errors import ConfigError, DataError, HubSilent
from sparring.stages.plain import printable


@dataclass(frozen=True, kw_only=True)
class PublicDataset:
    """A published file of prompts, and where it is on the hub."""

    title: str
    repo: str
    """Dataset or space of the hub."""
    kind: str = "dataset"
    """dataset or space."""
    instructions: str
    """Its file of instructions; AlpacaEval's holds the baseline's outputs too."""
    column: str | None = None
    """Of the file; None: the first known one (stages/sample/suite_prompts.py)."""

    def fetch(self, name: str, instead: str) -> Path:
        """Return a file of the hub; DataError says how to give it instead: `--reference FILE`."""
        from sparring.pipeline.sources import hub  # half a second

        try:
            return hub.data_file(self.kind, self.repo, name)
        except DataError as error:
            kind = HubSilent if isinstance(error, HubSilent) else DataError
            raise kind(self.absent(name, instead, str(error).rstrip("."))) from None

    def absent(self, name: str, instead: str, why: str) -> str:
        """Return that a file is not here, and how to have it."""
        return (
            f"{self.title}: {name} of the {self.kind} {self.repo} is not here ({why}); get it where the hub answers, "
            f"and give it with {instead}."
        )


@dataclass(frozen=True, kw_only=True)
class Suite(PublicDataset):
    """A suite that a policy answers here."""

    rows: int
    answer: str | None = None
    """"module:function" that answers it; None: one response to each row."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How answers are judged."""

    function: str
    """"module:function"."""
    options: tuple[str, ...]
    """Those of the command that it reads, beside --json."""


SUITES = {
    "alpaca_eval": Suite(
        title="AlpacaEval 2.0",
        rows=805,
        repo="tatsu-lab/alpaca_eval",
        instructions="alpaca_eval_gpt4_baseline.json",
    ),
    "mt_bench": Suite(
        title="MT-Bench",
        rows=80,
        repo="lmsys/mt-bench",
        kind="space",
        instructions="data/mt_bench/question.jsonl",
        answer="sparring.pipeline.suites.answer_mt_bench:run",
    ),
}
COMPARED: dict[str, PublicDataset] = {
    **SUITES,
    "truthfulqa": PublicDataset(
        title="TruthfulQA",
        repo="truthfulqa/truthful_qa",
        instructions="generation/validation-00000-of-00001.parquet",
        column="question",
    ),
    "arc_challenge": PublicDataset(
        title="ARC-Challenge",
        repo="allenai/ai2_arc",
        instructions="ARC-Challenge/test-00000-of-00001.parquet",
        column="question",
    ),
    "gsm8k": PublicDataset(
        title="GSM8K", repo="openai/gsm8k", instructions="main/test-00000-of-00001.parquet", column="question"
    ),
    "hellaswag": PublicDataset(
        title="HellaSwag", repo="Rowan/hellaswag", instructions="data/validation-00000-of-00001.parquet", column="ctx"
    ),
    "mmlu": PublicDataset(
        title="MMLU", repo="cais/mmlu", instructions="all/test-00000-of-00001.parquet", column="question"
    ),
    "winogrande": PublicDataset(
        title="WinoGrande",
        repo="allenai/winogrande",
        instructions="winogrande_xl/validation-00000-of-00001.parquet",
        column="sentence",
    ),
}
"""What the training prompts are compared with: the rows that are scored, as their authors' datasets have them."""
JUDGES = {
    "alpaca_eval": Judge(
        function="sparring.pipeline.suites.judge_alpaca_eval:judge",
        options=("reference", "annotator", "base_url", "model", "annotations", "gamed"),
    ),
    "mt_bench": Judge(
        function="sparring.pipeline.suites.judge_mt_bench:judge",
        options=("questions", "judge_prompts", "reference", "base_url", "model"),
    ),
    "lm_eval": Judge(
        function="sparring.pipeline.suites.judge_lm_eval:judge",
        options=("iter", "tasks", "limit", "model", "runs"),
    ),
}


def only_model(names: Sequence[str], wanted: str | None, url: str) -> str:
    """Return the model to ask a server for: the one wanted, or the only one that it has."""
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None or wanted not in names:
        listed = printable(", ".join(names[:20])) or "none"
        raise ConfigError(f"--model {wanted}: the server at {url} has {listed}; name one of them.")
    return wanted


def require(module: str, sentence: str, package: str) -> None:
    """DataError where a module does not load: `sentence` says what its package, an extra of ours, is needed for."""
    try:
        import_module(module)
    except ImportError as error:
        why = "is not installed here" if error.name == module else f"does not load here ({error})"
        extra = package.replace("_", "-")
        raise DataError(f"{sentence}, which {why}: pip install {package} (or sparring[{extra}]).") from None
