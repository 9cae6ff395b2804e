"""The README: its commands exist, its groups are those of conf/, nothing is left to fill in."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z0-9]+@|TODO|TBD", TEXT)


def test_every_option_of_every_group_is_named() -> None:
    from sparring.pipeline.config import groups

    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.*?) \|", TEXT, re.M)
    choices = {group: row for groups, row in rows for group in re.findall(r"\w+", groups)}
    reference = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert set(groups.group_names()) <= choices.keys()
    named = {
        f"{group}={option}": f"`{option}`" in choices[group] or f"`{group}={option}`" in reference
        for group in groups.group_names()
        for option in groups.options_of(group)
    }
    assert [option for option, is_named in named.items() if not is_named] == []
    unknown = {
        f"{group}={option}"
        for group in groups.group_names()
        for option in re.findall(r"`([\w.-]+)`", choices[group].partition("; published")[0])
        if option not in groups.options_of(group)
    }
    assert unknown == {"hardware=auto", "judge=ensemble"}  # `auto` becomes an option; one row is of oracle and judge


def test_files_that_are_linked_exist() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
        assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_the_commands_of_the_readme_are_those_of_the_command_line() -> None:
    from sparring.pipeline.cli.app import COMMANDS

    assert set(re.findall(r"bin/sparring (\w[\w-]*)", TEXT)) <= COMMANDS.keys()


@pytest.mark.parametrize("words", re.findall(r'^make iter N=\d .*?ARGS="(.*?)"', TEXT, re.M))
def test_the_settings_of_a_run_are_accepted(words: str) -> None:

    from sparring.pipeline import config

    config.load([*([] if "hardware=" in words else ["hardware=cpu"]), *shlex.split(words)])


def test_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.M))  # commands, not the word in a sentence
    assert {"iter", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_number_of_prompts_is_the_files() -> None:
    rows = (ROOT / "stages/sample/starter.jsonl").read_text().splitlines()
    assert f"{len(rows)} prompts" in TEXT


def test_what_a_published_recipe_costs_is_what_the_plan_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparring.pipeline.cli import main

    (shown,) = re.findall(r"^\.venv/bin/sparring (plan .*usd_per_hour.*)\n((?:# .*\n)+)", TEXT, re.M)
    command, lines = shown[0], [line.removeprefix("# ") for line in shown[1].splitlines()]
    assert main([*shlex.split(command), f"paths.store={tmp_path}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and set(lines) <= set(printed)
    dollars = {name: _dollars(name, tmp_path, capsys) for name in ("sppo_llama3_8b", "sppo_gemma2_9b")}
    assert f"Llama-3-8B comes to {dollars['sppo_llama3_8b']}, Gemma-2-9B to {dollars['sppo_gemma2_9b']}" in TEXT


def _dollars(name: str, store: Path, capsys: pytest.CaptureFixture[str]) -> str:
    from sparring.pipeline.cli import main

    words = [f"experiment={name}", "hardware=h100x8", "hardware.usd_per_hour=24", f"paths.store={store}"]
    assert main(["plan", *words]) == 0
    return re.findall(r"\$[\d.]+(?= at)", capsys.readouterr().out)[0]
