"""Imports point one way, from the commands down to stages/; neither modules nor packages import in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"sparring.pipeline": ROOT / "pipeline", "sparring.stages": ROOT / "stages"} | {
    name: ROOT / name for name in ("scripts", "benchmarks")
}


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for name, folder in ROOMS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([name, *(part for part in parts if part != "__init__")])] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, inside functions too, but for those that only a type checker reads."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        todo += ast.iter_child_nodes(node)


@cache
def arrows() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports."""
    known = modules()
    found = {name: {one for one in imported(path) if one in known and one != name} for name, path in known.items()}
    packages = {name for name, path in known.items() if path.name == "__init__.py"}
    for name, to in found.items():  # `from package import module` asks for the module alone
        found[name] = {one for one in to if not (one in packages and any(other.startswith(f"{one}.") for other in to))}
    return found


def test_stages_import_nothing_of_the_orchestrator() -> None:
    wrong = {
        name: sorted(one for one in to if one.startswith("sparring.pipeline"))
        for name, to in arrows().items()
        if name.startswith("sparring.stages")
    }
    assert {name: to for name, to in wrong.items() if to} == {}


BELOW_THE_COMMANDS = ("execution", "runs", "planning", "sources", "config", "store")
"""Rooms of pipeline/, each of which imports only those after it; the commands import all of them."""
OF_SETTINGS = {"config": ("runs", "report")}
"""The configuration is made of the settings of rooms, which are beside their owners."""


def test_rooms_of_the_orchestrator_import_only_those_below_them() -> None:
    def room(name: str) -> str:
        return name.split(".")[2] if name.startswith("sparring.pipeline.") else ""

    wrong = []
    for name, to in arrows().items():
        if room(name) in BELOW_THE_COMMANDS:
            below = BELOW_THE_COMMANDS[BELOW_THE_COMMANDS.index(room(name)) :]
            allowed = ("", *below, *OF_SETTINGS.get(room(name), ()))
            wrong += [f"{name} -> {one}" for one in to if room(one) not in allowed]
    assert wrong == []


def test_the_package_imports_nothing_that_stays_in_a_checkout() -> None:
    outside = ("scripts", "benchmarks", "tests")
    for name, path in modules().items():
        if name.startswith("sparring"):
            assert not [one for one in imported(path) if one.partition(".")[0] in outside], name


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


PACKAGES = {name for name, path in modules().items() if path.name == "__init__.py" and "sparring." in name}
ROOMS_WITH_SETTINGS = {"sparring.pipeline"}
"""Checked above: `config` reads the settings that two rooms keep, and these rooms read the configuration."""


@pytest.mark.parametrize("package", sorted(PACKAGES - ROOMS_WITH_SETTINGS))
def test_the_parts_of_a_package_do_not_import_each_other_in_a_circle(package: str) -> None:
    """Its parts: the modules and packages directly in it."""

    def part_of(module: str) -> str:
        return module.removeprefix(f"{package}.").partition(".")[0]

    inside = {name: to for name, to in arrows().items() if name.startswith(f"{package}.")}
    parts: dict[str, set[str]] = {part_of(name): set() for name in inside}
    for name, to in inside.items():
        parts[part_of(name)] |= {part_of(one) for one in to if one in inside} - {part_of(name)}
    try:
        TopologicalSorter(parts).prepare()
    except CycleError as error:
        pytest.fail(f"a circle in {package}: {' <- '.join(error.args[1])}")


def test_commands_call_the_orchestrator_and_not_the_reverse() -> None:
    cli = "sparring.pipeline.cli"
    inside = {name: to for name, to in arrows().items() if name.startswith("sparring.") and not name.startswith(cli)}
    assert cli in arrows() and len(inside) > 50
    calls = {name: sorted(one for one in to if one.startswith(cli)) for name, to in inside.items()}
    assert {name: to for name, to in calls.items() if to} == {}
