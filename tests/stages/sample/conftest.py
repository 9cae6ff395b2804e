"""The tokenizer of a module's `folder`, and prompts rendered by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparring.stages.chat import Chat, load_chat
from tests.stages.sample.questions import QUESTIONS


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return load_chat(folder)


@pytest.fixture(scope="module")
def prompt_ids(chat: Chat) -> list[list[int]]:
    return [chat.render([{"role": "user", "content": text}]) for text in QUESTIONS]
