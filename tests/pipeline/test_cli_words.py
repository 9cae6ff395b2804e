"""What one types: commands in groups, options around overrides, usage errors of one line, completion."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.cli.app import COMMANDS, loaded
from sparring.stages.step import resolve
from tests.refusals import named

GROUPS = {
    "Run": ["run", "plan", "import", "oracle", "stop"],
    "Look": ["status", "logs", "report", "inspect"],
    "Judge": ["answer", "best-of-n", "judge", "contamination"],
    "Share": ["export", "sync"],
    "Maintain": ["verify", "profile", "gc", "doctor"],
}


def parsed(*words: str) -> dict[str, Any]:
    """What a command's function would be called with."""
    return loaded(words[0]).make_context(words[0], list(words[1:])).params


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def sparring(*words: str, code: int = 0, **environment: str) -> str:
    """What the program prints in a process of its own; its output is no terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "sparring", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def test_every_command_is_listed_once_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    _, *sections = re.split(r"^(\w+):$", printed(capsys, "--help"), flags=re.M)
    texts = dict(zip(sections[::2], sections[1::2], strict=True))
    listed = {name: re.findall(r"^  ([a-z][\w-]*) ", text, re.M) for name, text in texts.items()}
    assert {name: found for name, found in listed.items() if name != "Options"} == GROUPS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_what_it_does_and_gives_an_example_that_parses(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = COMMANDS[command]
    told = inspect.getdoc(resolve(f"sparring.pipeline.{listed.function}")) or ""
    assert told.partition("\n")[0] == listed.help
    examples = re.findall(r"^ +Example: sparring (.*)$", printed(capsys, command, "--help"), re.M)
    assert [f"Example: sparring {line}" for line in examples] == [told.rpartition("\n")[2]]
    words = shlex.split(examples[0])
    assert words[0] == command and parsed(*words)


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_help_is_plain_and_cuts_no_option(columns: str) -> None:
    text = sparring("export", "--help", COLUMNS=columns, FORCE_COLOR="1")
    assert "\x1b" not in text and not set("│╭╰…") & set(text)
    options = [name for one in loaded("export").params for name in one.opts if name.startswith("-")]
    assert len(options) == 8
    for name in options:
        assert re.search(rf"^  {name}\b", text, re.M), name


HEAVY = {"torch", "ray", "transformers"}


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [("--help", {*HEAVY, "hydra", "numpy", "rich", "pydantic", "sparring.pipeline.cli.run"})]
    + [(f"{command} -h", HEAVY) for command in COMMANDS],
)
def test_help_imports_nothing_heavy(words: str, unwanted: set[str]) -> None:
    code = (
        "import sys; from sparring.pipeline.cli import main; main(sys.argv[1:]);"
        f"print(sorted({unwanted} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


OVERRIDES = ["+sampler.engine_args.max_num_seqs=64", "~gate", "selection=[a,b]", "repulsion.layer=-2"]


@pytest.mark.parametrize("at", range(len(OVERRIDES) + 1))
def test_options_stand_before_between_and_after_overrides(at: int) -> None:
    words = [*OVERRIDES[:at], "-m", "--redo", "train", "--redo=score", *OVERRIDES[at:]]
    assert parsed("run", *words) == {"overrides": OVERRIDES, "redo": ["train", "score"], "multirun": True}


def test_what_is_left_out_has_its_default() -> None:
    assert parsed("status") == {"run": "default", "watch": False, "why": False, "runs": Path("runs")}
    assert not parsed("run")["overrides"] and not parsed("run")["redo"] and not parsed("report")["run"]
    assert parsed("best-of-n", "s", "r")["n"] == 16 and parsed("answer", "s", "r")["best_of"] == 1


def test_values_are_typed_and_options_may_be_shortened() -> None:
    given = parsed("export", "mine", "--iter", "-1", "--to", "~/x", "--dry")
    assert given["iteration"] == -1 and given["to"] == Path.home() / "x" and given["dry_run"]
    assert parsed("run", "--", "-x")["overrides"] == ["-x"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", ("command", "`sparring --help`")),
        ("nope", ("nope", "`sparring --help`")),
        ("stat", ("'status'? `sparring --help`",)),
        ("--foo", ("--foo", "`sparring --help`")),
        ("run a=1 --foo b=2", ("--foo", "`sparring run --help`")),
        ("plan -x", ("-x", "`sparring plan --help`")),
        ("plan --config=1", ("--config",)),
        ("status one two", ("two", "`sparring status --help`")),
        ("import pairs", ("file", "`sparring import --help`")),
        ("import triples file", ("triples", "responses", "pairs")),
        ("oracle chek file", ("chek", "check")),
        ("oracle check file --limit many", ("--limit", "integer")),
        ("answer alpaca_eval", ("run", "`sparring answer --help`")),
        ("best-of-n suite run --best-of 4", ("--best-of",)),
        ("export --dtype float16", ("float16", "bfloat16")),
        ("export --to", ("--to", "`sparring export --help`")),
        ("export --to --yes", ("--to", "`sparring export --help`")),
        ("export --to ''", ("--to",)),
        ("sync", ("--to", "`sparring sync --help`")),
    ],
)
def test_a_usage_error_is_one_line_that_names_what_is_wrong(
    words: str, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(words)) == 2
    said = capsys.readouterr()
    named(said.err, *names)
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and "--help` says" in said.err
    assert not said.out and "\x1b" not in said.err


def test_version_is_said_before_anything_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"sparring \d+\.\d+\S*\n", printed(capsys, "--version"))


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sparring ver", ["verify"]),
        ("sparring run --re", ["--redo"]),
        ("sparring export --dtype ", ["bfloat16", "float32"]),
        ("sparring import ", ["responses", "pairs"]),
    ],
)
def test_a_shell_is_told_how_a_line_may_go_on(typed: str, offered: list[str]) -> None:
    at = str(typed.count(" "))
    found = sparring(_SPARRING_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=at)
    assert found.split() == offered
