"""The command line: runs a command, and turns an error into an exit code and one line. app.py lists the commands.

sparring run iterations=3 run.name=myrun experiment=sppo
sparring run -m experiment=sppo,s_sppo        # arms as one plan: what they share is computed once
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import ssl
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer
from typer.exceptions import TyperException

from sparring.pipeline.cli import app
from sparring.pipeline.execution import signals
from sparring.stages.errors import RUN_AGAIN, SparringError, Stopped, first_line
from sparring.stages.plain import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 2 for an error that the user can mend, 130 when interrupted, 143 when terminated."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal cannot encode is replaced
            stream.reconfigure(errors="replace")
    signals.handle_signals()
    try:
        return app.call(sys.argv[1:] if argv is None else argv)
    except typer.Exit as done:  # of --help and --version
        return done.exit_code
    except TyperException as error:
        _say(_one_line(_usage(error)))
        return 2
    except SparringError as error:
        _say(_one_line(error))
        return 2
    except Stopped as stop:
        _say(str(stop))
        return 128 + stop.number
    except KeyboardInterrupt:
        _say(f"stopped; {RUN_AGAIN}")
        return 128 + (signals.last_signal() or signal.SIGINT)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if number := signals.last_signal():  # an import that a signal broke off is an ImportError
            _say(f"stopped; {RUN_AGAIN}")
            return 128 + number
        if not (cause := _outside_cause(error)):
            log = _crash_log()
            _say(f"error: unexpected {type(error).__name__}: {error}. The details are in {log}; please report it.")
            return 1
        _say(_one_line(cause))
        return 2


def _open_closed_streams() -> None:
    """Open streams that the shell has closed, as in `sparring plan >&-`; else the next file would become stdout."""
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
"""Packages whose errors are about their input."""


def _outside_cause(error: Exception) -> str | None:
    """Return the message for an error of the machine, the network or a file; None for a fault of this program."""
    first = first_line(error)
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
    """Return an error as one line; line feeds in what it quotes are spelled out."""
    return f"error: {error}".replace("\n", "\\n")


def _say(text: str) -> None:
    """Print a message; what it quotes of files, models and servers cannot steer the terminal."""
    print(printable(text), file=sys.stderr)


def _usage(error: TyperException) -> str:
    """Return what is wrong with a command line, and the command that explains its parameters."""
    message = " ".join(error.format_message().replace(": Value error, ", ": ").split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "sparring"
    ends = " " if message.endswith("?") else "; "
    return f"{message[:1].lower()}{message[1:]}{ends}`{command} --help` says what there is."


def _crash_log() -> Path:
    """Write the stack trace to a file here, or in the temporary folder where here cannot be written."""
    name = f"sparring-crash-{time.strftime('%Y%m%d-%H%M%S')}.log"
    for folder in (Path(), Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            (folder / name).write_text(traceback.format_exc(), encoding="utf-8", errors="replace")
            return folder / name
    return Path("/dev/null")
