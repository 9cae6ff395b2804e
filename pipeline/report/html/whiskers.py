"""A chart of differences, as SVG: a dot for each and a whisker for its interval, left and right of 0. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparring.pipeline.report.html.axes import COLOURS, RIGHT, WIDTH, labelled, marker, padded
from sparring.pipeline.report.html.markup import Html, join, tag
from sparring.pipeline.report.html.svg import figure, picture

INSET = 16.0
"""From the left edge to the smallest value."""
NAMED, LINE, GAP = 16.0, 15.0, 7.0
"""Heights of a row's name, of a whisker in it, and of what parts it from the next row."""
FOOT = 34.0
LONGEST = 52
"""Characters of a name: there is room for no more."""


@dataclass(frozen=True, kw_only=True)
class Whisker:
    """A difference; `look` numbers marker and colour."""

    name: str
    look: int
    value: float
    low: float
    high: float


def whiskers(title: str, x_name: str, rows: Sequence[tuple[str, Sequence[Whisker]]]) -> Html:
    """Return the chart, a row for each (name, whiskers) from the top; '' without any. Its axis holds 0."""
    every = [one for _, ones in rows for one in ones]
    if not every:
        return Html("")
    low, high = padded([0.0, *(value for one in every for value in (one.value, one.low, one.high))])

    def at(value: float) -> float:
        return INSET + (value - low) / (high - low) * (WIDTH - RIGHT - INSET)

    heights = [NAMED + LINE * len(ones) + GAP for _, ones in rows]
    bottom = sum(heights)
    parts = [_ruled(at(value), bottom, label) for value, label in labelled(low, high)]
    parts.append(tag("path", d=f"M{at(0.0):.2f} 0V{bottom:g}", class_="level"))
    for place, (name, ones) in enumerate(rows):
        top = sum(heights[:place])
        parts.append(tag("text", tag("title", name), _short(name), x=INSET, y=top + NAMED - 4, class_="over"))
        for line, one in enumerate(ones):
            y = top + NAMED + (line + 0.5) * LINE
            parts.append(_whisker(name, one, y, at(one.low), at(one.value), at(one.high)))
    parts.append(tag("path", d=f"M{INSET:g} {bottom:g}H{WIDTH - RIGHT:g}", class_="axis"))
    middle = (INSET + WIDTH - RIGHT) / 2
    parts.append(tag("text", x_name, x=middle, y=bottom + FOOT - 4, text_anchor="middle", class_="name"))
    keys = {one.name: _key(one) for one in every}
    return figure(title, picture(title, parts, WIDTH, bottom + FOOT), [*keys.items()])


def _ruled(x: float, bottom: float, label: str) -> Html:
    line = tag("path", d=f"M{x:.2f} 0V{bottom:g}", class_="grid")
    return join([line, tag("text", label, x=x, y=bottom + 15, text_anchor="middle")])


def _whisker(row: str, one: Whisker, y: float, low: float, value: float, high: float) -> Html:
    said = tag("title", f"{row}, {one.name}: {one.value:+z.3f} [{one.low:+z.3f}, {one.high:+z.3f}]")
    reach = f"M{low:.2f} {y - 3:.2f}v6m0 -3H{high:.2f}m0 -3v6"
    return tag("g", said, tag("path", d=reach, class_=f"reach c{one.look % COLOURS}"), marker(one.look, value, y))


def _key(one: Whisker) -> Html:
    reach = tag("path", d="M2 3v6m0 -3H26m0 -3v6", class_=f"reach c{one.look % COLOURS}")
    return join([reach, marker(one.look, 14, 6)])


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
