"""Which code made a step: digests of the modules that computed it, stable under comments, docstrings and formatting.

A step's modules are the files of `stages` that its worker, shards, finish or run can import, imports inside functions
included; what is chosen by name (an oracle) is named by the step's `modules`. The orchestrator's own files compute no
result and are left out.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import stages
from pipeline.job import StepSpec
from pipeline.plan import Plan, State, Step

ROOT = Path(stages.__file__).parents[1]
PACKAGE = "stages"
SHOWN = 3
"""Files that the line on other code names of a kind of step."""

Code = Mapping[str, str]
"""stages/annotate/score.py -> 16 hex digits."""


def code_of(spec: StepSpec, identity: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the modules that compute a step, by file."""
    from pipeline.execute import resolve

    entries = [path.partition(":")[0] for path in (spec.worker, spec.shards, spec.finish, spec.run) if path]
    chosen = resolve(spec.modules)(identity) if spec.modules else ()
    return {_name(path): _digest(path, path.stat().st_mtime_ns) for path in sorted(_closure((*entries, *chosen)))}


def other_code(plan: Plan, states: Mapping[str, State]) -> dict[str, set[str]]:
    """Return kind -> files that differ, of the cached steps that other code has made.

    Those of older versions, which do not say what made them, are left out.
    """
    found: dict[str, set[str]] = {}
    for name, step in plan.steps.items():
        manifest = states[name].manifest if states[name].kind == "hit" else None
        made = manifest.made_with.get("modules") if manifest else None
        if isinstance(made, dict) and (files := differing(made, code_of(step.spec, step.identity))):
            found.setdefault(step.spec.kind, set()).update(files)
    return found


def differing(made: Code, now: Code) -> set[str]:
    """Return the files that are not the same in both."""
    return {name for name in {*made, *now} if made.get(name) != now.get(name)}


def described(found: Mapping[str, set[str]]) -> str:
    """Return the line on cached steps that other code has made."""
    kinds = [
        f"{kind} ({', '.join(sorted(files)[:SHOWN])}{f' and {len(files) - SHOWN} more' if len(files) > SHOWN else ''})"
        for kind, files in found.items()
    ]
    redo = " ".join(f"--redo {kind}" for kind in found)
    return f"cached steps were made with other code: {'; '.join(kinds)}. To make them again: sparring run {redo}"


def redone(plan: Plan, asked: Sequence[str]) -> frozenset[str]:
    """Return the fingerprints of the steps that --redo names, by kind or label; ConfigError names what there is."""
    from pipeline.errors import ConfigError

    found: set[str] = set()
    for one in asked:
        named = {name for name, step in plan.steps.items() if one in _names(step)}
        if not named:
            known = sorted({step.spec.kind for step in plan.steps.values()})
            raise ConfigError(f"--redo {one}: this plan has no such step; its kinds are {', '.join(known)}.")
        found |= named
    return frozenset(found)


def _names(step: Step) -> set[str]:
    return {step.spec.kind, *(use.label for use in step.uses)}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _closure(modules: Iterable[str]) -> set[Path]:
    todo, seen = [path for module in modules for path in _files(module)], set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += _imports(path, path.stat().st_mtime_ns)
    return seen


def _files(module: str) -> Iterator[Path]:
    """Yield the file of a module, if it is one of ours, and those of its packages."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return
    for end in range(1, len(parts) + 1):
        place = ROOT.joinpath(*parts[:end])
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                yield path


@cache
def _tree(path: Path, _mtime_ns: int) -> ast.Module:
    return ast.parse(path.read_bytes())


@cache
def _imports(path: Path, mtime_ns: int) -> tuple[Path, ...]:
    found: list[Path] = []
    for node in ast.walk(_tree(path, mtime_ns)):
        if isinstance(node, ast.Import):
            found += [file for alias in node.names for file in _files(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += _files(node.module)
            found += [file for alias in node.names for file in _files(f"{node.module}.{alias.name}")]
    return tuple(dict.fromkeys(found))


@cache
def _digest(path: Path, mtime_ns: int) -> str:
    tree = _tree(path, mtime_ns)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # texts that stand alone: docstrings, and those under a field
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
