"""sparring run | plan | import | oracle | status | report | inspect | export | sync | answer | best-of-n | judge
            | contamination | verify | doctor

sparring run iterations=3 run.name=myrun experiment=sppo
sparring run -m experiment=sppo,s_sppo        # arms as one plan: what they share is computed once
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import ssl
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from sparring.pipeline import stopping
from sparring.pipeline.cli_suites import add_suites, place
from sparring.stages.errors import SparringError
from sparring.stages.plain import printable

Command = Callable[[str, str, str], argparse.ArgumentParser]
"""(name, help, "module:function" of the orchestrator) -> its parser."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 2 for an error that the user can mend, 130 when interrupted, 143 when terminated."""
    _reopen()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no letter for a character shows another one
            stream.reconfigure(errors="replace")
    arguments = _arguments(argv)
    stopping.handle_signals()
    try:
        return int(arguments.call(arguments))
    except SparringError as error:
        _say(_one_line(error))
        return 2
    except stopping.Stopped as stop:
        _say(str(stop))
        return 128 + stop.number
    except KeyboardInterrupt:
        _say(f"stopped; {stopping.RUN_AGAIN}")
        return 128 + stopping.received()
    except BrokenPipeError:
        return 0
    except Exception as error:
        if stopping.was_told():  # an import that a signal broke off is an ImportError
            _say(f"stopped; {stopping.RUN_AGAIN}")
            return 128 + stopping.received()
        if not (known := _not_ours(error)):
            log = _crash_log()
            _say(f"error: unexpected {type(error).__name__}: {error}. The details are in {log}; please report it.")
            return 1
        _say(_one_line(known))
        return 2


def _reopen() -> None:
    """Open what the shell has closed, as in `sparring plan >&-`: else the next file would be the standard output."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))


OWN = ("sparring", "scripts")
NETWORK = ("aiohttp", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests", "socket", "urllib3")
SETTINGS = ("antlr4", "hydra", "omegaconf", "yaml")
FORMATS = ("json", "pyarrow", "safetensors_rust")
"""Packages whose errors are of what they were given."""


def _not_ours(error: Exception) -> str | None:
    """Return what is said of an error of the machine, the network or a file; None of one that is our own fault."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    package = type(error).__module__.partition(".")[0]
    named = [str(name) for name in (getattr(error, "filename2", None), getattr(error, "filename", None)) if name]
    place = named[0] if named else "the file system"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place}: the disk is full. Free space, then run again."
    if isinstance(error, ConnectionError | TimeoutError | ssl.SSLError) or package in NETWORK:
        return f"the network: {first}. Check the address and the connection, then run again: it resumes."
    if isinstance(error, OSError) and error.strerror:
        return f"{place}: {error.strerror}. Mend it, or name another place; then run again."
    if isinstance(error, ModuleNotFoundError) and (name := (error.name or "").partition(".")[0]) not in OWN:
        return f"the package {name} is not installed; `make setup` installs all, or: pip install 'sparring[cpu]'."
    if isinstance(error, MemoryError):
        return "there is not enough memory. End other programs, or lower hardware.workers; then run again: it resumes."
    if package == "ray":
        return f"Ray: {first}. Run the same command again to resume."
    if package in SETTINGS:
        return f"the configuration: {first}."
    if package in FORMATS or isinstance(error, UnicodeDecodeError | OSError):
        return f"a file is damaged, or of another format ({first}); `sparring verify` looks at those of the store."
    return None


def _one_line(error: SparringError | str) -> str:
    """Return what is said of an error; line feeds in what it quotes are spelled out."""
    return f"error: {error}".replace("\n", "\\n")


def _say(text: str) -> None:
    """Print a message; what it quotes of files, models and servers cannot steer the terminal."""
    print(printable(text), file=sys.stderr)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; overrides may stand before and after options, which argparse alone would refuse."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and ("overrides" not in arguments or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def _crash_log() -> Path:
    """Write the stack trace to a file here, or in the temporary folder where here cannot be written."""
    name = f"sparring-crash-{time.strftime('%Y%m%d-%H%M%S')}.log"
    for folder in (Path(), Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            (folder / name).write_text(traceback.format_exc(), encoding="utf-8", errors="replace")
            return folder / name
    return Path("/dev/null")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, printable(f"error: {message}; `{self.prog} --help` says what there is.\n"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sparring", description="Iterative self-play preference optimization.")
    parser.add_argument("--version", action="version", version=f"sparring {version('sparring')}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, help_: str, call: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(call=lambda arguments: _call(f"sparring.pipeline.{call}", arguments))
        return sub

    _add_runs(command)
    _add_files(command)
    _add_views(command)
    _add_outlets(command)
    add_suites(command)
    return parser


def _add_runs(command: Command) -> None:
    for name, help_ in (
        ("run", "Make what is missing of N iterations."),
        ("plan", "Show the steps and their cost."),
    ):
        sub = command(name, help_, f"commands:{name}")
        sub.add_argument("-m", "--multirun", action="store_true", help="sweep values a=1,2 as arms of one plan")
        if name == "plan":
            sub.add_argument("--why", action="store_true", help="say how a step differs from the nearest artifact")
            sub.add_argument("--config", action="store_true", help="print the resolved configuration instead")
        sub.add_argument(
            "--redo", action="append", default=[], metavar="STEP", help="make the steps of this kind or label again"
        )
        sub.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. iterations=3 experiment=sppo")


def _add_files(command: Command) -> None:
    imports = command("import", "Bring existing responses or pairs into the store.", "imports:run")
    imports.add_argument("what", choices=["responses", "pairs"])
    imports.add_argument("file", type=place, help="its columns tell the layout (stages/sample/layouts.py)")
    imports.add_argument(
        "--prompt-column", metavar="NAME", help="column of the prompt (default: prompt, if there is one)"
    )
    imports.add_argument("--split", metavar="NAME", help="which split of a folder that has several")
    imports.add_argument("--cut", action="store_true", help="the responses were cut: append no end-of-turn token")
    imports.add_argument(
        "--drop-empty", action="store_true", help="drop rows with an empty response, do not refuse them"
    )
    imports.add_argument("overrides", nargs="*", help="those of the run that will use it: policy, prompts")
    oracle = command(
        "oracle",
        "Is the oracle fit for these prompts? Ask it about labelled pairs.",
        "oracle_check:run",
    )
    oracle.add_argument("what", choices=["check"])
    oracle.add_argument("file", type=place, help="a file or folder of pairs, in a layout that `import pairs` reads")
    oracle.add_argument("--split", metavar="NAME", help="which split of a folder that has several")
    oracle.add_argument("--limit", type=int, metavar="N", help="look at the first N rows (default: all)")
    oracle.add_argument("--judge", action="store_true", help="ask the second judge, not the oracle")
    oracle.add_argument("--json", type=place, metavar="FILE", help="write the figures there")
    oracle.add_argument(
        "--prompt-column", metavar="NAME", help="column of the prompt (default: prompt, if there is one)"
    )
    oracle.add_argument(
        "--drop-empty", action="store_true", help="leave rows with an empty response out, do not refuse them"
    )
    oracle.add_argument("overrides", nargs="*", help="those of the run: oracle, prompts, sampler.k")


def _add_views(command: Command) -> None:
    status = command("status", "Show the steps of a run.", "commands:status")
    status.add_argument("run", nargs="?", default="default")
    status.add_argument("--why", action="store_true", help="say why a step is not done")
    status.add_argument("--runs", type=place, default="runs", help="folder of the runs (paths.runs)")
    report = command("report", "Print the table of runs, and write them as one HTML file.", "commands:report")
    report.add_argument("run", nargs="*", help="runs, or arms of them, that are compared with the first")
    report.add_argument("--json", type=place, metavar="FILE", help="write the figures there as well")
    report.add_argument("--runs", type=place, default="runs", help="folder of the runs (paths.runs)")
    inspect = command(
        "inspect",
        "Show one prompt: responses, who beats whom, gate, pair.",
        "commands:inspect_prompt",
    )
    inspect.add_argument("run", nargs="?", default="default", help="a run, or an arm of one: myrun/experiment=sppo")
    inspect.add_argument("--iter", type=int, metavar="T", help="the iteration (default: the last one)")
    inspect.add_argument("--prompt", metavar="ID", help="the prompt, or how its id begins (default: a list of them)")
    inspect.add_argument("--full", action="store_true", help="print responses whole")
    inspect.add_argument("--runs", type=place, default="runs", help="folder of the runs (paths.runs)")
    verify = command("verify", "Re-hash every file of the store; undo what is corrupt.", "commands:verify")
    verify.add_argument("--store", type=place, default="store", help="the store (paths.store)")
    doctor = command("doctor", "Check what a run needs, list what is optional.", "commands:doctor")
    doctor.add_argument("overrides", nargs="*")


def _add_outlets(command: Command) -> None:
    export = command("export", "Write a policy as a folder with a model card.", "export.command:run")
    export.add_argument("run", nargs="?", default="default", help="a run, or an arm of one: myrun/experiment=sppo")
    export.add_argument("--iter", type=int, metavar="T", help="the iteration (default: the best by the second judge)")
    export.add_argument("--to", type=place, metavar="FOLDER", help="where (default: exports/RUN-iter-T)")
    export.add_argument("--dtype", choices=["bfloat16", "float32"], help="cast the weights (default: as published)")
    export.add_argument("--datasets", action="store_true", help="responses and pairs as datasets, under datasets/")
    export.add_argument("--push", metavar="OWNER/NAME", help="send it to the hub as well; asks first")
    export.add_argument("--yes", action="store_true", help="push without asking")
    export.add_argument("--dry-run", action="store_true", help="list what would go where; write and send nothing")
    export.add_argument("--runs", type=place, default="runs", help="folder of the runs (paths.runs)")
    sync = command("sync", "Feed a tracker with a run's records, after the fact.", "sync:run")
    sync.add_argument("run", nargs="?", default="default", help="a run, or an arm of one: myrun/experiment=sppo")
    sync.add_argument("--to", required=True, metavar="TRACKER", help="tensorboard, wandb, mlflow or trackio")
    sync.add_argument("--project", metavar="NAME", help="its project or experiment there (default: sparring)")
    sync.add_argument("--runs", type=place, default="runs", help="folder of the runs (paths.runs)")


def _call(target: str, arguments: argparse.Namespace) -> int:
    from sparring.stages.step import resolve

    return int(resolve(target)(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())
