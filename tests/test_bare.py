"""What the base dependencies alone are enough for: a wheel in an empty environment, and what its modules import."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from scripts.indexes import pip_settings, uv_environment
from sparring.pipeline.cli.app import COMMANDS
from tests.packed import wheel
from tests.pipeline.report.fabricated import Run

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = ("sparring", "scripts")
GATES = ROOT / "stages" / "annotate" / "gates"
OBJECTIVES = ROOT / "stages" / "train" / "objectives"
BASE = (
    "sparring.pipeline.cli",
    "sparring.pipeline.cli.doctor",
    "sparring.pipeline.report.as_json",
    "sparring.pipeline.report.html.page",
    "sparring.pipeline.report.inspect",
    "sparring.pipeline.report.terminal",
    *(f"sparring.stages.train.objectives.{path.stem}" for path in OBJECTIVES.glob("*.py")),
    *(f"sparring.stages.annotate.gates.{path.stem}" for path in GATES.glob("*.py")),
    *sorted({f"sparring.pipeline.{one.function.partition(':')[0]}" for one in COMMANDS.values()}),
)
"""Modules of what needs no model: all commands' help, and what reads a run."""


def imports(path: Path, inside_functions: bool) -> Iterator[str]:
    """Yield the dotted names that a module imports when it runs, not those that only a type checker reads."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
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
    of_suites = {"pandas", "yaml", "pyyaml"}  # what alpaca_eval itself is made with
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("pipeline", "stages")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in third_party(imports(path, inside_functions=True)) - of_suites
        if not declared(name, known)
    }
    assert not undeclared


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that has the wheel, its base dependencies and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    built, _ = wheel(folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python, uv = folder / "venv" / "bin" / "python", Path(sys.executable).with_name("uv")
    settings = uv_environment(pip_settings(Path(sys.executable)), [])
    subprocess.run([uv, "pip", "install", "--quiet", f"--python={python}", built], check=True, env=settings)
    return python.parent


def said(place: Path, *words: str, code: int = 0) -> str:
    """What a program says that knows nothing of this checkout."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, encoding="utf-8", env=plain, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_wheel_in_an_empty_environment_plans_and_reports(bare: Path, tmp_path: Path) -> None:
    sparring, python = str(bare / "sparring"), str(bare / "python")
    assert said(tmp_path, python, "-c", "import sparring; print(sparring.__version__)").strip() == PROJECT["version"]
    assert said(tmp_path, sparring, "--version") == said(tmp_path, python, "-m", "sparring", "--version")
    assert "plan" in said(tmp_path, sparring, "--help")
    assert "to do" in said(tmp_path, sparring, "plan", "hardware=cpu")
    assert "torch" in said(tmp_path, sparring, "doctor", code=1)
    assert "torch" in said(tmp_path, sparring, "run", code=2) and not (tmp_path / "runs").exists()
    run = Run(tmp_path).begin().based()
    run.trained(1)
    run.evaluated(1, 0.6, 0.55)
    assert "oracle" in said(tmp_path, sparring, "report", "mine")
    assert "<html" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_nothing_but_the_package_is_installed(bare: Path) -> None:
    (site,) = (bare.parent / "lib").glob("python3*/site-packages")
    (record,) = site.glob("sparring-*.dist-info/RECORD")
    tops = {line.split("/")[0] for line in record.read_text(encoding="utf-8").splitlines()}
    assert {name for name in tops if name != ".."} == {"sparring", record.parent.name}
