"""The cache of an annotator's answers: what is asked again, and a file that a kill cut off. The rest: test_judge.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparring.stages.errors import DataError
from sparring.stages.evaluate.suites.alpaca_eval import drop_unanswered
from tests.refusals import refused


def test_rows_without_a_preference_are_asked_again(tmp_path: Path) -> None:
    cache = tmp_path / ".annotator-0.json"
    drop_unanswered(cache)
    assert not cache.exists()
    cache.write_text(json.dumps([{"preference": 1.2}, {"preference": -1}, {"preference": None}]))
    drop_unanswered(cache)
    assert json.loads(cache.read_text()) == [{"preference": 1.2}, {"preference": None}]
    assert list(tmp_path.iterdir()) == [cache]


@pytest.mark.parametrize("text", ['[{"preference": 1.2}, {"prefe', "", "7", "[7]", '[{"output": "x"}]', "\udc80"])
def test_a_damaged_cache_is_named(text: str, tmp_path: Path) -> None:
    cache = tmp_path / ".annotator-0.json"
    cache.write_bytes(text.encode(errors="surrogateescape"))
    with refused(DataError, str(cache), "remove"):
        drop_unanswered(cache)
    assert cache.read_bytes() == text.encode(errors="surrogateescape")
