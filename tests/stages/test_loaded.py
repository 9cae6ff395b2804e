"""Models of a process: small ones are kept, of the large ones there is one, and the one before is gone first."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparring.stages import loaded
from sparring.stages.step import File, Input


class Model:
    """Stands for one."""


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("_large", "_small"):
        monkeypatch.setattr(loaded, name, {})
    loaded.taken_note_of()
    yield
    loaded.taken_note_of()


def test_a_model_that_is_kept_is_not_loaded_again() -> None:
    first = loaded.kept("scorer", "a", Model)
    assert loaded.kept("scorer", "a", Model) is first
    small = loaded.kept("encoder", "a", Model, small=True)
    assert small is not first and loaded.kept("encoder", "a", Model, small=True) is small
    assert [load.model for load in loaded.taken_note_of()] == ["scorer", "encoder"]
    assert loaded.taken_note_of() == []


def test_a_large_model_is_gone_before_another_is_loaded_and_small_ones_stay() -> None:
    small = loaded.kept("encoder", "e", Model, small=True)
    gone = weakref.ref(loaded.kept("policy engine", "a", Model))

    def other() -> Any:
        assert gone() is None
        return Model()

    second = loaded.kept("policy engine", "b", other)
    assert loaded.kept("policy engine", "b", Model) is second
    assert loaded.kept("encoder", "e", Model, small=True) is small
    loaded.drop_large()
    assert loaded.kept("policy engine", "b", Model) is not second
    assert loaded.kept("encoder", "e", Model, small=True) is small


def test_small_is_a_gibibyte_of_files_at_most() -> None:
    def model(size: int) -> Input:
        return Input(role="judge", root=Path(), digest="", files=(File(name="a", path="a", sha256="", bytes=size),))

    half = 1 << 29
    assert loaded.is_small([model(half), model(half)]) and not loaded.is_small([model(half), model(half + 1)])
