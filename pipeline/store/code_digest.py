"""Which code made a step: digests of the modules that computed it, independent of comments, docstrings and formatting.

A step's modules are the files of `stages` that its worker, shards, finish or run can import, imports inside functions
included; modules chosen by name (an oracle, an engine) are listed by the step's `modules`. The orchestrator's files and
those in CONTRACT compute no result and are left out.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sparring import stages
from sparring.stages import digests
from sparring.stages.step import StepSpec, resolve

PACKAGE = stages.__name__
ROOT = Path(stages.__file__).parents[1]
CONTRACT = frozenset(
    f"{name}.py"
    for name in (
        "digests",
        "errors",
        "fields",
        "fingerprint",
        "hardware",
        "model_folder",
        "patience",
        "plain",
        "step",
        "vitals",
    )
)
"""Files directly in stages/ that its packages and the orchestrator share."""
CACHE = f"code-{sys.version_info.major}.{sys.version_info.minor}.json"
"""A file of the user's cache; the dump of a syntax tree depends on Python's version."""

Code = Mapping[str, str]
"""stages/annotate/score.py -> 16 hex digits."""


@dataclass(frozen=True)
class Module:
    """A source file."""

    digest: str
    imports: list[str]
    """Dotted names that it may import, at its top or inside functions."""


def code_of(spec: StepSpec, settings: Any) -> dict[str, str]:
    """Return the digests of the modules that compute a step, by file."""
    entries = [path.partition(":")[0] for path in (spec.worker, spec.shards, spec.finish, spec.run) if path]
    chosen = resolve(spec.modules)(settings) if spec.modules else ()
    todo = [path for module in (*entries, *chosen) for path in _files(module)]
    seen: dict[Path, Module] = {}
    while todo:
        path = todo.pop()
        if path not in seen:
            stat = path.stat()
            seen[path] = _read(path, f"{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}")
            todo += [file for name in seen[path].imports for file in _files(name)]
    return {str(path.relative_to(ROOT)): seen[path].digest for path in sorted(seen)}


def differing(made: Code, now: Code) -> set[str]:
    """Return the files that are not the same in both."""
    return {name for name in {*made, *now} if made.get(name) != now.get(name)}


def _files(module: str) -> Iterator[Path]:
    """Yield the file of a module of stages, and those of its packages; nothing for other modules."""
    if not f"{module}.".startswith(f"{PACKAGE}."):
        return
    top = place = ROOT / PACKAGE.rpartition(".")[2]
    for name in ("", *module.removeprefix(PACKAGE).split(".")[1:]):
        place = place / name
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file() and not (path.parent == top and path.name in CONTRACT):
                yield path


@cache
def _read(path: Path, mark: str) -> Module:
    """Read a file, or what the user's cache has of it: parsing all of them takes most of a second."""
    cached = digests.load(CACHE).get(str(path))
    if not isinstance(cached, dict) or cached.get("mark") != mark:
        cached = {"mark": mark, **_parse(path)}
        digests.save(CACHE, {**digests.load(CACHE), str(path): cached})
    return Module(digest=str(cached.get("digest")), imports=[str(name) for name in cached.get("imports", [])])


def _parse(path: Path) -> dict[str, Any]:
    """Return the digest of a file's code, without its docstrings, and the names that it imports."""
    tree = ast.parse(path.read_bytes())
    imports: set[str] = set()
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
        body = getattr(node, "body", None)
        if isinstance(body, list):  # strings that stand alone: docstrings, and those under a field
            node.body = [  # type: ignore[attr-defined]
                line
                for line in body
                if not (
                    isinstance(line, ast.Expr)
                    and isinstance(line.value, ast.Constant)
                    and isinstance(line.value.value, str)
                )
            ]
    return {"digest": hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], "imports": sorted(imports)}
