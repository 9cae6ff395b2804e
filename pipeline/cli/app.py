"""The commands by name. Each is one typed function of this package; its parameters are its arguments and options.

Its module is imported when the command is called: `sparring --help` imports none of them. Help is plain text, since
rich, which typer would draw boxes with, takes longer to import than all the rest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from sparring.stages.step import resolve


class Listed(NamedTuple):
    """A command as `sparring --help` lists it."""

    group: str
    function: str
    """"module:function" of the orchestrator."""
    help: str
    """How the function's docstring begins."""


COMMANDS = {
    "run": Listed("Run", "cli.run:run", "Make what is missing of N iterations."),
    "plan": Listed("Run", "cli.plan:plan", "Show the steps and their cost."),
    "import": Listed("Run", "cli.imports:run", "Bring existing responses or pairs into the store."),
    "oracle": Listed(
        "Run", "cli.oracle_check:run", "Is the oracle fit for these prompts? Ask it about labelled pairs."
    ),
    "stop": Listed("Run", "cli.stop:stop", "End a run as Ctrl-C there would."),
    "status": Listed("Look", "cli.status:status", "Show how a run is doing."),
    "logs": Listed("Look", "cli.logs:logs", "Show the logs of a run, the first error first."),
    "report": Listed("Look", "cli.report:report", "Print the table of runs, and write them as one HTML file."),
    "inspect": Listed("Look", "cli.report:inspect_prompt", "Show one prompt: responses, who beats whom, gate, pair."),
    "answer": Listed("Judge", "cli.answer:answer", "Have a run's policy answer a suite or a file of prompts."),
    "best-of-n": Listed("Judge", "cli.answer:best_of_n", "Answer as `answer` does, with the oracle's best of n."),
    "judge": Listed("Judge", "cli.judge:judge", "Judge answers to a suite by its own rules."),
    "contamination": Listed(
        "Judge", "cli.contamination:contamination", "Which rows of suites do the training prompts hold?"
    ),
    "export": Listed("Share", "cli.export:export", "Write a policy as a folder with a model card."),
    "sync": Listed("Share", "cli.sync:sync", "Feed a tracker with a run's records, after the fact."),
    "verify": Listed("Maintain", "cli.verify:verify", "Re-hash every file of the store; undo what is corrupt."),
    "profile": Listed(
        "Maintain",
        "cli.profile:profile",
        "Measure the rates of this machine in minutes, and write them as a hardware profile.",
    ),
    "gc": Listed("Maintain", "cli.gc:gc", "List what no run refers to; remove it with --delete."),
    "doctor": Listed("Maintain", "cli.doctor:doctor", "Check what a run needs, list what is optional."),
}


class Command(TyperCommand):
    """Takes options that are shortened, as --multi, and no option as the value of another one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = {name: one for one in self.get_params(ctx) for name in one.opts if name.startswith("-")}
        for index, word in enumerate(args[: args.index("--")] if "--" in args else args):
            name, equals, value = word.partition("=")
            begun = [option for option in options if option.startswith(name)] if name.startswith("--") else []
            if name not in options and len(begun) == 1:
                name = begun[0]
                args[index] = name + equals + value
            option, after = options.get(name), args[index + 1] if index + 1 < len(args) else "-"
            takes = isinstance(option, TyperOption) and not option.is_flag and not equals
            another = after.startswith("-") and not after[1:2].isdigit()  # a number may be negative
            if takes and another and not ctx.resilient_parsing:
                ctx.fail(f"Option '{name}' requires an argument")
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """Lists the commands in groups, and imports the one that is called, or whose options a shell asks for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, short_help=one.help) for name, one in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, loaded(args[0]) if command else None, rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, COMMANDS))
        for group in dict.fromkeys(one.group for one in COMMANDS.values()):
            with formatter.section(group):
                rows = [(name.ljust(width), one.help) for name, one in COMMANDS.items() if one.group == group]
                formatter.write_dl(rows)


def loaded(name: str) -> Any:
    """Import a command; return its parser."""
    alone = typer.Typer(rich_markup_mode=None, add_completion=False)
    alone.command(name, cls=Command)(resolve(f"sparring.pipeline.{COMMANDS[name].function}"))
    return typer.main.get_command(alone)


app = typer.Typer(cls=Group, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


def _print_version(requested: bool) -> None:
    if requested:
        print(f"sparring {version('sparring')}")
        raise typer.Exit


@app.callback()
def _sparring(
    shown: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Iterative self-play preference optimization."""


def call(words: Sequence[str]) -> int:
    """Parse and call a command; return its exit code. typer's own call would hide how a command was stopped."""
    if os.environ.get("_SPARRING_COMPLETE"):  # a shell asks how a line may go on
        app(prog_name="sparring")
    parser = typer.main.get_command(app)
    with parser.make_context("sparring", list(words)) as context:
        return int(parser.invoke(context) or 0)
