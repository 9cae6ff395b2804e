"""docs/exit-codes.md lists the codes that commands end with."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from sparring.pipeline.cli import app, main
from sparring.pipeline.execution import signals
from sparring.pipeline.runs.driver import LONGEST_S
from sparring.stages.errors import RuleFired

PAGE = (Path(__file__).parents[3] / "docs" / "exit-codes.md").read_text(encoding="utf-8")


def fault() -> NoReturn:
    raise ZeroDivisionError("a fault")


def rule() -> NoReturn:
    raise RuleFired("collapsed.")


def by(number: signal.Signals) -> Callable[[], int]:
    def end() -> int:
        signals.stop(number, None)
        return 0

    return end


@pytest.mark.parametrize(
    ("code", "what"),
    [(0, lambda: 0), (1, fault), (2, rule), (130, by(signal.SIGINT)), (143, by(signal.SIGTERM))],
)
def test_every_code_is_on_the_page(
    code: int, what: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # a fault writes a file
    monkeypatch.setattr(app, "call", lambda words: what())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert main([]) == code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert f"\n| {code} | " in PAGE


def test_the_page_lists_no_other_code_and_only_commands_that_are() -> None:
    assert re.findall(r"^\| (\d+) \|", PAGE, re.M) == ["0", "1", "2", "130", "143"]
    assert set(re.findall(r"`sparring (\w+)", PAGE)) <= app.COMMANDS.keys()
    assert f"in {LONGEST_S / 60:.0f} minutes" in PAGE
