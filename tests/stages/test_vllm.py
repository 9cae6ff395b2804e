"""vLLM's engine of a process: kept for steps that need the same, dropped before another is made."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from sparring.stages import vllm


class Engine:
    """Stands for one."""


def test_the_same_engine_is_kept_and_another_is_made_after_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "_KEPT", {})
    first = vllm.kept("a", Engine)
    assert vllm.kept("a", Engine) is first
    gone = weakref.ref(first)
    del first

    def other() -> Any:
        assert gone() is None
        return Engine()

    second = vllm.kept("b", other)
    assert vllm.kept("b", Engine) is second and list(vllm._KEPT) == ["b"]
