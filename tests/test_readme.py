"""The README: its commands exist, its groups are those of conf/, nothing is left to fill in."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z0-9]+@|TODO|TBD", TEXT)


def test_every_group_and_choice_is_named() -> None:
    rows = {group: row for row in TEXT.splitlines() for group in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", row)}
    for folder in (p for p in (ROOT / "conf").iterdir() if p.is_dir() and not p.name.startswith("__")):
        row = next(row for groups, row in rows.items() if f"`{folder.name}`" in groups)
        for choice in folder.glob("*.yaml"):
            assert f"`{choice.stem}`" in row, f"{folder.name}/{choice.stem} is not in the README"


def test_the_commands_of_the_readme_are_those_of_the_command_line() -> None:
    from pipeline.cli import _parser

    known = _parser().format_help()
    for command in set(re.findall(r"bin/sparring (\w+)", TEXT)):
        assert command in known


def test_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.M))  # commands, not the word in a sentence
    assert {"iter", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_number_of_prompts_is_the_files() -> None:
    rows = (ROOT / "stages/sample/starter.jsonl").read_text().splitlines()
    assert f"{len(rows)} prompts" in TEXT
