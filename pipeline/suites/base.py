"""What every suite has: its questions on the hub, and functions that answer and judge them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path

from sparring.pipeline.suites.results import Judged
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
class Suite:
    """A suite that a policy answers (`sparring answer`), that is judged (`sparring judge`), or both."""

    questions: PublicDataset | None = None
    """None: a policy answers it while it is judged."""
    answer: Callable[..., None] | None = None
    """Has a policy answer the questions: (player, file of questions, file to write). None: a response to each row."""
    judge: Callable[..., Judged] | None = None
    """Judges a file of answers; its keywords are the options of the command that it reads."""

    @property
    def options(self) -> list[str]:
        """The options of `sparring judge` that the suite reads."""
        parameters = signature(self.judge).parameters if self.judge else {}
        return [name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY]


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
