"""Which code made a step: digests of the modules that computed it, stable under comments, docstrings and formatting.

A step's modules are the files of `stages` that its worker, shards, finish or run can import, imports inside functions
included; what is chosen by name (an oracle, an engine) is named by the step's `modules`. The orchestrator's own files
and those of CONTRACT compute no result and are left out.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sparring import stages
from sparring.pipeline.planning.plan import Plan, State, Step
from sparring.stages import digests
from sparring.stages.errors import ConfigError
from sparring.stages.step import StepSpec, resolve

PACKAGE = stages.__name__
ROOT = Path(stages.__file__).parents[1]
CONTRACT = frozenset(
    f"{name}.py" for name in ("digests", "errors", "fields", "fingerprint", "model_folder", "patience", "plain", "step")
)
"""Files of stages/ itself on which its rooms and the orchestrator rest."""
SHOWN = 3
"""Files that the line on other code names of a kind of step."""

CACHE = f"code-{sys.version_info.major}.{sys.version_info.minor}.json"
"""A file of the user's cache; how a syntax tree is written is Python's."""

Code = Mapping[str, str]
"""stages/annotate/score.py -> 16 hex digits."""


@dataclass(frozen=True)
class Module:
    """What a file says."""

    digest: str
    imports: list[str]
    """Dotted names that it may import, at its top or inside functions."""


@dataclass(frozen=True, kw_only=True)
class OtherCode:
    """The cached steps of a plan that other code has made."""

    steps: int
    of: int
    """All cached steps."""
    files: Mapping[str, set[str]]
    """Kind of step -> files that differ."""

    def __str__(self) -> str:
        kinds = [f"{kind}: {_listed(sorted(files))}" for kind, files in self.files.items()]
        redo = " ".join(f"--redo {kind}" for kind in self.files)
        return (
            f"{self.steps} of {self.of} cached steps were made with other code ({'; '.join(kinds)}). "
            f"`sparring run {redo}` makes them again."
        )


def _listed(files: Sequence[str]) -> str:
    more = len(files) - SHOWN
    return ", ".join(files[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def code_of(spec: StepSpec, settings: Any) -> dict[str, str]:
    """Return the digests of the modules that compute a step, by file."""
    entries = [path.partition(":")[0] for path in (spec.worker, spec.shards, spec.finish, spec.run) if path]
    chosen = resolve(spec.modules)(settings) if spec.modules else ()
    found = _closure((*entries, *chosen))
    return {str(path.relative_to(ROOT)): found[path].digest for path in sorted(found)}


def other_code(plan: Plan, states: Mapping[str, State]) -> OtherCode | None:
    """Return the cached steps that other code has made, None where there is none.

    Those of older versions, which do not say what made them, are left out.
    """
    files: dict[str, set[str]] = {}
    steps = 0
    hits = {name: state.manifest for name, state in states.items() if state.kind == "hit" and state.manifest}
    for name, manifest in hits.items():
        step, made = plan.steps[name], manifest.made_with.get("modules")
        if isinstance(made, dict) and (differ := differing(made, code_of(step.spec, step.settings))):
            files.setdefault(step.spec.kind, set()).update(differ)
            steps += 1
    return OtherCode(steps=steps, of=len(hits), files=files) if steps else None


def differing(made: Code, now: Code) -> set[str]:
    """Return the files that are not the same in both."""
    return {name for name in {*made, *now} if made.get(name) != now.get(name)}


def redone(plan: Plan, asked: Sequence[str]) -> frozenset[str]:
    """Return the fingerprints of the steps that --redo names, by kind or label; ConfigError names what there is."""
    found: set[str] = set()
    for one in asked:
        named = {name for name, step in plan.steps.items() if one in _names(step)}
        if not named:
            known = sorted({name for step in plan.steps.values() for name in _names(step)})
            raise ConfigError(f"--redo {one}: this plan has no such step; choose of {', '.join(known)}.")
        found |= named
    return frozenset(found)


def _names(step: Step) -> set[str]:
    return {step.spec.kind, *(use.label for use in step.uses)}


def _closure(modules: Iterable[str]) -> dict[Path, Module]:
    todo = [path for module in modules for path in _files(module)]
    seen: dict[Path, Module] = {}
    while todo:
        path = todo.pop()
        if path not in seen:
            seen[path] = _module(path)
            todo += [file for name in seen[path].imports for file in _files(name)]
    return seen


def _files(module: str) -> Iterator[Path]:
    """Yield the file of a module, if it is one of ours, and those of its packages."""
    if not f"{module}.".startswith(f"{PACKAGE}."):
        return
    top = place = ROOT / PACKAGE.rpartition(".")[2]
    for name in ("", *module.removeprefix(PACKAGE).split(".")[1:]):
        place = place / name
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file() and not (path.parent == top and path.name in CONTRACT):
                yield path


def _module(path: Path) -> Module:
    stat = path.stat()
    return _read(path, f"{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}")


@cache
def _read(path: Path, mark: str) -> Module:
    """Read a file, or what the user's cache knows of it: to parse all of them takes most of a second."""
    found = digests.load(CACHE).get(str(path))
    if not isinstance(found, dict) or found.get("mark") != mark:
        found = {"mark": mark, **_parsed(path)}
        digests.save(CACHE, {**digests.load(CACHE), str(path): found})
    return Module(digest=str(found.get("digest")), imports=[str(name) for name in found.get("imports", [])])


def _parsed(path: Path) -> dict[str, Any]:
    tree = ast.parse(path.read_bytes())
    nodes = list(ast.walk(tree))
    for node in nodes:
        body = getattr(node, "body", None)
        if isinstance(body, list):  # texts that stand alone: docstrings, and those under a field
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return {
        "digest": hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16],
        "imports": sorted({name for node in nodes for name in _imported(node)}),
    }


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
