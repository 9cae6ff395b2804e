"""The notations of a conversation, each read as a list of {role, content} messages.

    text                                  one message of the user
    [{role, content}, ..]                 OpenAI's; a message without a role is the user's; content is a text, or parts
                                          {type: text, text}, which are joined
    [{from, value}, ..]                   ShareGPT's; human, gpt and system
    "[{..}, ..]"                          a text that is the JSON of either list, as CSV files hold it (or Python's
                                          notation of it, as pandas writes it); any other text is taken literally
    "\n\nHuman: ..\n\nAssistant: .."      a dialogue of hh-rlhf; what follows a turn of the same speaker is added to it

They mean the same in every file format and in every column that holds a prompt or a response.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, TypedDict

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Speaker of ShareGPT -> role."""
SPEAKER = re.compile(r"\n\n(Human|Assistant):")


class Message(TypedDict):
    """One turn."""

    role: str
    content: str


class Empty(ValueError):
    """A prompt without text."""


def kind(value: Any) -> str:
    """Return what a value is, in words."""
    named = {type(None): "null", dict: "an object", list: "a list", bool: "a boolean", str: "a text", bytes: "bytes"}
    number = "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
    return named.get(type(value), number)


def messages(value: Any) -> list[Message]:
    """Return the turns of a prompt; ValueError with what is wrong, without the place."""
    turns = notation(value)
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    elif isinstance(value, str) and turns[-1] == {"role": "assistant", "content": ""}:
        turns = turns[:-1]  # a dialogue that ends with "Assistant:" waits for the response
    if not isinstance(turns, list):
        raise (Empty if value is None else ValueError)(f"is {kind(value)}, not a text or a list of messages")
    if not turns:
        raise Empty("is an empty list of messages")
    read: list[Message] = []
    for turn in turns:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (0, 0)
        role = "user" if role is None else role
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError("has a message that is not {role: text, content: text}")
        if not content.strip():
            raise Empty("is empty" if role == "user" else f"has an empty {role} message")
        read.append({"role": role, "content": content})
    roles = [m["role"] for m in read]
    talk = roles[1:] if roles[0] == "system" else roles
    if talk != ["user" if i % 2 == 0 else "assistant" for i in range(len(talk))] or not talk or talk[-1] != "user":
        raise ValueError(
            f"has the roles {', '.join(roles)}: after an optional system message, user and assistant take turns "
            "and the last is user"
        )
    return read


def without_answer(value: Any) -> Any:
    """Return a conversation without its last answer, which data to train on has: the prompt is what precedes it."""
    turns = notation(value)
    last = turns[-1] if isinstance(turns, list) and len(turns) > 1 else None
    return turns[:-1] if isinstance(last, dict) and last.get("role") == "assistant" else turns


def notation(value: Any) -> Any:
    """Return a conversation in OpenAI's notation, whatever its own; what is none, and a literal text, unchanged."""
    if isinstance(value, str):
        value = _list_in(value) if value.lstrip().startswith("[") else _dialogue(value)
    if isinstance(value, list):
        return [as_message(turn) for turn in value]
    return value


def as_message(turn: Any) -> Any:
    """Return a message of ShareGPT, or one in parts of text, as {role, content}; anything else unchanged."""
    if not isinstance(turn, dict):
        return turn
    if {"from", "value"} <= turn.keys():
        return {"role": ROLES.get(str(turn["from"]), turn["from"]), "content": turn["value"]}
    parts = turn.get("content")
    if not isinstance(parts, list) or not parts:
        return turn
    given = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(parts):
        return turn
    return {**turn, "content": "".join(texts)}


def _list_in(text: str) -> Any:
    """Return the message list that a text spells, else the text."""
    for read in (json.loads, ast.literal_eval) if "'" in text else (json.loads,):
        try:
            turns = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(turns, list) and turns and all(map(is_message, turns)):
            return turns
    return text


def is_message(turn: Any) -> bool:
    """Return whether a value has the keys of a message, in either notation."""
    return isinstance(turn, dict) and ({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys())


def _dialogue(dialogue: str) -> Any:
    """Return the turns of a dialogue that opens with the human; an assistant's turn without text, the last, is none."""
    if not dialogue.startswith("\n\nHuman:"):
        return dialogue
    _, *parts = SPEAKER.split(dialogue)
    turns: list[Message] = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role, content = ROLES[speaker.lower()], text.strip()
        if turns and turns[-1]["role"] == role:
            content = f"{turns[-1]['content']}\n\n{content}".strip()
            turns.pop()
        turns.append({"role": role, "content": content})
    return turns
