"""Markdown of strings that may hold anything: names, paths, reasons. Nothing in them is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup
from omegaconf import OmegaConf

from sparring.stages.plain import printable

MARKUP = re.compile(r"([\\`*{}\[\]#|~$]|(?<!\w)_|_(?!\w)|(?<=\S)@(?=\S)|:(?=//)|(?<=www)\.)", re.IGNORECASE)
"""Addresses too, which would become links; an underscore inside a word is none."""
HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escaped(text: object) -> str:
    """Return one line that renders as its own characters: no markup, HTML, link or control character."""
    if isinstance(text, Markup):
        return text
    line = " ".join(printable(str(text)).split())
    return "".join(HTML.get(char, char) for char in MARKUP.sub(r"\\\1", line))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table's lines, every cell escaped that is not Markup of ours."""
    return [
        _row(head),
        "|" + "---|" * len(head),
        *(_row([escaped(cell) for cell in row]) for row in rows),
    ]


def front(fields: Mapping[str, Any]) -> list[str]:
    """Return YAML front matter without what is None or empty."""
    return ["---", OmegaConf.to_yaml(OmegaConf.create({k: v for k, v in fields.items() if v})).rstrip(), "---", ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
