"""HTML that is escaped by construction: what is not `Html` is text, and text is escaped where it is put in."""

from __future__ import annotations

import html
from collections.abc import Iterable

from sparring.stages.plain import printable

VOID = {"meta", "br", "input"}
"""Elements without an end."""
Value = str | int | float | bool | None


class Html(str):
    """Markup of ours. Joining it with plain text by + or an f-string gives plain text again, which is escaped."""

    __slots__ = ()


def safe(text: str) -> Html:
    """Return text as markup that shows it: special characters escaped, control and bidi characters spelled out."""
    return text if isinstance(text, Html) else Html(html.escape(printable(text), quote=True))


def tag(name: str, /, *inside: str, **attributes: Value) -> Html:
    """Return an element. Names of attributes: `class_` for class, `data_reason` for data-reason.

    True is an attribute without a value; None and False leave it out. Numbers are written short.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    return Html(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{join(inside)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Return the parts one after another, each escaped unless it is markup."""
    return Html("".join(safe(part) for part in parts))


def number(value: float) -> str:
    """Return a coordinate with at most two decimals: `12`, `3.25`."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], class_: str = "") -> Html:
    """Return a table in a box of its own, in which it scrolls where it is wide; the first cell names the row."""
    head = tag("tr", *(tag("th", name, scope="col") for name in heads))
    body = join(_row(row) for row in rows)
    whole = tag("table", tag("thead", head), tag("tbody", body), class_=class_ or None)
    return tag("div", whole, class_="wide", tabindex=0, role="region", aria_label="table")


def _row(cells: Iterable[str]) -> Html:
    first, *others = cells
    return tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in others))


def _attribute(key: str, value: Value) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{safe(value) if isinstance(value, str) else number(value)}"'
