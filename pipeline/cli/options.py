"""Parameters that several commands share, and how parameters are declared."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def place(text: str | Path) -> Path:
    """Return a path of the command line, ~ expanded."""
    text = str(text)
    if not text or any(char < " " for char in text):
        raise typer.BadParameter("name a file or a folder")
    return Path(os.path.expanduser(text))


def value(metavar: str, help: str, *names: str) -> Any:
    """Declare an option with a value; without names it has the parameter's."""
    return typer.Option(*names, metavar=metavar, help=help)


def path(metavar: str, help: str, *names: str) -> Any:
    """Declare an option that names a file or a folder."""
    return typer.Option(*names, parser=place, metavar=metavar, help=help)


def flag(name: str, help: str) -> Any:
    """Declare an option without a value."""
    return typer.Option(name, help=help)


def words(help: str, metavar: str = "KEY=VALUE", parser: Callable[[str], Any] | None = None) -> Any:
    """Declare the remaining words: overrides, runs or files. They may stand before, between and after options."""
    return typer.Argument(parser=parser, metavar=metavar, default_factory=list, show_default=False, help=help)


RUNS = Path("runs")
Run = Annotated[str, typer.Argument(help="a run, or an arm of one: myrun/experiment=sppo")]
Runs = Annotated[Path, path("FOLDER", "folder of the runs (paths.runs)")]
Overrides = Annotated[list[str], words("Hydra overrides, e.g. iterations=3 experiment=sppo")]
Multirun = Annotated[bool, typer.Option("--multirun", "-m", help="sweep values a=1,2 as arms of one plan")]
Redo = Annotated[
    list[str],
    typer.Option(metavar="STEP", default_factory=list, show_default=False, help="kind or label of steps to make again"),
]
Json = Annotated[Path | None, path("FILE", "file to write the figures to", "--json")]
Split = Annotated[str | None, value("NAME", "split to read, of a folder that has several")]
Column = Annotated[str | None, value("NAME", "column of the text (default: instruction, prompt, …)")]
PromptColumn = Annotated[str | None, value("NAME", "column of the prompt (default: prompt, if there is one)")]
DropEmpty = Annotated[bool, flag("--drop-empty", "drop rows with an empty response instead of refusing the file")]
