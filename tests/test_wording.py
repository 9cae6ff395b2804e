"""Tests assert what an error names, not how it is worded: no phrase of English is asked of a message."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PHRASE = re.compile(r"(?<![\w/=-])[a-z]{2,}(?: [a-z]{2,}){2,}(?![\w/=-])")
"""Three words of lower-case letters or more, one blank apart."""
LEFT = {
    "faults/test_poison.py",  # what a broken engine says
    "pipeline/report/test_comparison.py",  # rendered text
}


def texts(node: ast.expr) -> Iterator[str]:
    """What a string says, or an f-string between its values; of a tuple, a list or a sum, of each part."""
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value


def asked(call: ast.Call) -> Iterator[ast.expr]:
    """The expressions that a call compares with a message."""
    match call.func:
        case ast.Attribute(attr="raises"):
            yield from (word.value for word in call.keywords if word.arg == "match")
        case ast.Name(id="refused" | "named"):
            yield from call.args[1:]


def phrases(tree: ast.AST) -> list[str]:
    """The phrases of a file, each with its line."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        f"{node.lineno}: {text}"
        for node in calls
        for word in asked(node)
        for text in texts(word)
        if PHRASE.search(text)
    ]


def files() -> list[str]:
    """Every file of the tests, from their folder."""
    return sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py"))


@pytest.mark.parametrize("file", [file for file in files() if file not in LEFT])
def test_no_message_is_asked_for_a_phrase(file: str) -> None:
    assert phrases(ast.parse((TESTS / file).read_text(encoding="utf-8"))) == []


def test_what_is_left_has_phrases() -> None:
    assert {file for file in files() if phrases(ast.parse((TESTS / file).read_text(encoding="utf-8")))} == LEFT


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('pytest.raises(DataError, match="there is nothing")', 1),
        ('pytest.raises(DataError, match=rf"{a} is not there; {b}")', 1),
        ('refused(DataError, "line 3", "holds no prompts")', 1),
        ('named(message, ("row 2", "is not finite"))', 1),
        ('named("what it is", "gate.floor=1", "train, test", "has 3 rows", "no_such_key is")', 0),
        ('pytest.raises(DataError, match=r"gate\\.floor")', 0),
    ],
)
def test_a_phrase_is_told_from_a_name(code: str, found: int) -> None:
    assert len(phrases(ast.parse(code))) == found
