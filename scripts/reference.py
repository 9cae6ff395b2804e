"""Writes docs/configuration.md, the reference of all settings, out of the models that the configuration is checked by.

python -m scripts.reference           writes the page; a test says when it is not current
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args, get_origin

from sparring.pipeline.config.groups import group_names, options_of
from sparring.pipeline.config.model import Config
from sparring.stages import fields

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """\
# Configuration

Every setting is a Hydra override of `sparring run`, `plan` and the other commands: `trainer.lr=5e-7`. A group has
options, files of `conf/`, that set many at once: `gate=power`. `sparring plan --config` prints what a run would use.

*Hashed* says whether a setting is part of what names an artifact: a change of one that is makes the step anew, and the
steps after it. `by its bytes`: the files are hashed, not where they are. `through what it decides`: other settings of a
step, or other steps, follow from it.
This page is written by `python -m scripts.reference` out of the code; do not edit it.
"""


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)


def page() -> str:
    """Return the page."""
    single = {name: kind for name, kind in fields.hints(Config).items() if not _models(kind)}
    rows = [row for name, kind in single.items() for row in _rows(name, kind, _meaning(Config, name))]
    parts = [HEAD, _table(rows)]
    for name, kind in fields.hints(Config).items():
        if _models(kind) and name != "published":  # which only presets set
            parts += [f"\n## {name}\n", *_options(name), _table(list(_group(name, kind)))]
    return "\n".join(parts)


def _options(group: str) -> Iterator[str]:
    if group in group_names():
        yield f"Options: {', '.join(f'`{group}={one}`' for one in options_of(group))}.\n"


def _group(prefix: str, kind: Any, above: str = "yes") -> Iterator[tuple[str, ...]]:
    """Yield a row for each field of a group, with the kinds of the group that have it where not all do."""
    models = _models(kind)
    above = _hashed(kind) if above == "yes" else above
    tag = next(iter(fields.discriminators([kind])), "")
    names = list(dict.fromkeys(name for model in models for name in fields.hints(model)))
    for name in names:
        having = [model for model in models if name in fields.hints(model)]
        annotation = fields.hints(having[0])[name]
        if name == tag:
            choices = ", ".join(fields.tags(kind, tag))
            yield (
                f"`{prefix}.{name}`",
                f"one of {choices}",
                "Set by the option.",
                _hashed(annotation) if above == "yes" else above,
            )
            continue
        of = "" if len(having) == len(models) else f"Of {', '.join(t for m in having for t in _tags(m, tag))}. "
        yield from _rows(f"{prefix}.{name}", annotation, f"{of}{_meaning(having[0], name)}", above)


def _rows(key: str, annotation: Any, meaning: str, above: str = "yes") -> Iterator[tuple[str, ...]]:
    if _models(annotation) and get_origin(fields.members(annotation)[0]) is not dict:
        yield from _group(key, annotation, above)
        return
    rule, reference = fields.metadata(annotation, fields.OnlyIf), fields.metadata(annotation, fields.ByReference)
    where = f" Read only {(rule or reference).where}." if rule or reference else ""
    allowed = fields.described(annotation).removeprefix("must be ").removeprefix("choose ")
    yield f"`{key}`", allowed, f"{meaning}{where}".strip(), _hashed(annotation) if above == "yes" else above


def _hashed(annotation: Any) -> str:
    rule = fields.metadata(annotation, fields.Hashed)
    return "yes" if rule is None else f"yes, {rule.how}" if rule.part else rule.how


def _models(kind: Any) -> list[Any]:
    return [one for one in fields.members(kind) if fields.is_model(one)]


def _tags(model: Any, tag: str) -> list[str]:
    return [one for kind in fields.members(fields.hints(model)[tag]) for one in get_args(kind)]


@cache
def _meanings(model: Any) -> dict[str, str]:
    """Return the texts that stand under the fields of a class."""
    body = ast.parse(dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _meaning(model: Any, name: str) -> str:
    return next((text for one in model.__mro__[:-1] if (text := _meanings(one).get(name))), "")


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    head = ["| setting | what it may be | meaning | hashed |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {line} |" for line in lines)]) + "\n"


if __name__ == "__main__":
    main()
