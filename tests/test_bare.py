"""What the base dependencies alone are enough for: a wheel in an empty environment, and what its modules import."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = ("pipeline", "stages", "conf", "sparring", "scripts")
BASE = (
    "pipeline.cli",
    "pipeline.commands",
    "pipeline.doctor",
    "pipeline.export.command",
    "pipeline.imports",
    "pipeline.report.compare",
    "pipeline.report.differences",
    "pipeline.report.html.page",
    "pipeline.report.inspect",
    "pipeline.report.numbers",
    "pipeline.sync",
)
"""Modules of commands that need no model."""


def imports(path: Path, inside_functions: bool) -> Iterator[str]:
    """Yield the dotted names that a module imports."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        if inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)


def files(module: str) -> list[Path]:
    place = ROOT.joinpath(*module.split("."))
    return [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]


def third_party(names: Iterator[str]) -> set[str]:
    roots = {name.partition(".")[0] for name in names}
    return roots - set(OWN) - sys.stdlib_module_names


def distributions(lines: list[str]) -> set[str]:
    return {re.split(r"[<>=!\[; ]", line, maxsplit=1)[0].lower().replace("_", "-") for line in lines}


@cache
def installed() -> Mapping[str, list[str]]:
    """Return which packages bring a module, by its name."""
    return importlib.metadata.packages_distributions()


def declared(imported: str, wanted: set[str]) -> bool:
    """Whether the package that a name comes from is among `wanted`."""
    packages = installed().get(imported, [imported])
    return any(name.lower().replace("_", "-") in wanted for name in packages)


def test_the_base_dependencies_are_enough_to_import_what_needs_no_model() -> None:
    todo, seen = [path for module in BASE for path in files(module)], set[Path]()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += [file for name in imports(path, inside_functions=False) for file in files(name)]
    base = distributions(PROJECT["dependencies"])
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in seen
        for name in third_party(imports(path, inside_functions=False))
        if not declared(name, base)
    }
    assert not undeclared


def test_every_import_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    known = distributions([*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)])
    trackers = {"wandb", "mlflow", "trackio"}  # only where the user has installed them
    of_suites = {"pandas", "yaml", "pyyaml"}  # what alpaca_eval itself is made with
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("pipeline", "stages")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in third_party(imports(path, inside_functions=True)) - trackers - of_suites
        if not declared(name, known)
    }
    assert not undeclared


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_plans(tmp_path: Path) -> None:
    python = tmp_path / "bare" / "bin" / "python"
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    (wheel,) = tmp_path.glob("sparring-*.whl")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(wheel)], check=True)

    def said(*words: str) -> str:
        done = subprocess.run(
            [str(python), "-I", *words], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("-c", "import sparring; print(sparring.__version__)").strip() == PROJECT["version"]
    command = str(python.parent / "sparring")
    assert said(command, "--version").strip() == f"sparring {PROJECT['version']}"
    assert "plan" in said(command, "--help")
    assert "to do" in said(command, "plan", "hardware=cpu")
    done = subprocess.run([command, "run"], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 2 and "torch" in done.stderr and not (tmp_path / "runs").exists()
