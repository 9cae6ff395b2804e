"""The charts of rectangles, as SVG: who beats whom, and where the time went. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparring.pipeline.report.html.axes import COLOURS, WIDTH
from sparring.pipeline.report.html.markup import Html, Value, tag
from sparring.pipeline.report.html.svg import figure, picture

SIDE = 64.0
"""Width of the row names of a heat map; its head is half as high."""
STRONGEST = 0.55
"""Opacity of the win rate that is farthest from 1/2: what is written on it can still be read."""
FAINTEST = 0.1
"""Distance from 1/2 that has full colour, unless there are larger ones: what is near 1/2 stays pale."""
BAR = 24.0
NAMED = 52.0
"""Room for the name and, on the right, the sum of a bar."""


def heat(
    title: str,
    names: Sequence[str],
    cells: Mapping[tuple[int, int], float],
    ends: Mapping[tuple[int, int], tuple[float, float]],
) -> Html:
    """Return the matrix of win rates, row against column; cells that were not played are empty, the diagonal a dot.

    cells: (row, column) -> win rate of row, in [0, 1]. Above 1/2 it is blue, below orange, and the number says it.
    ends: the same -> its interval, where it is known; ~ marks the numbers whose interval contains 1/2.
    """
    size = min((WIDTH - SIDE) / len(names), 56.0)
    reach = max([FAINTEST, *(abs(value - 0.5) for value in cells.values())])
    parts = [_column(name, SIDE + (j + 0.5) * size) for j, name in enumerate(names)]
    for i, name in enumerate(names):
        top = SIDE / 2 + i * size
        parts.append(tag("text", name, x=SIDE - 8, y=top + size / 2 + 4, text_anchor="end"))
        for j, other in enumerate(names):
            told, sign = _told(f"{name} against {other}", cells.get((i, j)), ends.get((i, j)))
            parts.append(_cell(SIDE + j * size, top, size, cells.get((i, j)), reach, told, sign if i != j else "·"))
    return figure(title, picture(title, parts, WIDTH, SIDE / 2 + len(names) * size + 4), [])


def _column(name: str, x: float) -> Html:
    return tag("text", name, x=x, y=SIDE / 2 - 8, text_anchor="middle")


def _told(who: str, value: float | None, ends: tuple[float, float] | None) -> tuple[str, str]:
    """Return what is said of a cell, and what is written in it."""
    if value is None:
        return who, ""
    unsure = ends is not None and ends[0] <= 0.5 <= ends[1]
    interval = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
    return f"{who}: {value:.3f}{interval}", f"{'~' if unsure else ''}{f'{value:.2f}'.lstrip('0')}"


def _cell(x: float, y: float, size: float, value: float | None, reach: float, said: str, sign: str) -> Html:
    box: dict[str, Value] = {"x": x + 1, "y": y + 1, "width": size - 2, "height": size - 2}
    middle: dict[str, Value] = {"x": x + size / 2, "y": y + size / 2 + 4, "text_anchor": "middle"}
    if value is None:
        return tag("g", tag("rect", class_="empty", **box), tag("text", sign, **middle))
    opacity = STRONGEST * abs(value - 0.5) / reach
    side = "c0" if value >= 0.5 else "c1"
    rect = tag("rect", class_=f"cell {side}", fill_opacity=opacity, **box)
    return tag("g", tag("title", said), rect, tag("text", sign, **middle))


def bars(title: str, unit: str, rows: Sequence[tuple[str, Mapping[str, float]]], kinds: Sequence[str]) -> Html:
    """Return stacked bars, one a row; kinds: what a bar may be made of, in order, each with its own fill.

    rows: (name, kind -> value). The sum stands beside the bar; parts wide enough carry their name.
    """
    most = max((sum(values.values()) for _, values in rows), default=0.0)
    if not most:
        return Html("")
    scale = (WIDTH - 2 * NAMED) / most
    parts: list[Html] = []
    for place, (name, values) in enumerate(rows):
        top, x = 4 + place * (BAR + 8), NAMED
        parts.append(tag("text", name, x=NAMED - 6, y=top + BAR / 2 + 4, text_anchor="end"))
        for look, kind in enumerate(kinds):
            width = values.get(kind, 0.0) * scale
            if width:
                parts.append(_part(x, top, width, kind, look, f"{name}, {kind}: {values[kind]:,.1f} {unit}"))
            x += width
        parts.append(tag("text", f"{sum(values.values()):,.0f}", x=x + 6, y=top + BAR / 2 + 4))
    keys = [
        (kind, tag("rect", x=2, y=1, width=24, height=10, class_=f"bar c{look % COLOURS}"))
        for look, kind in enumerate(kinds)
    ]
    return figure(title, picture(title, parts, WIDTH, len(rows) * (BAR + 8) + 4), keys)


def _part(x: float, y: float, width: float, kind: str, look: int, said: str) -> Html:
    rect = tag("rect", x=x, y=y, width=max(width - 1, 0.5), height=BAR, class_=f"bar c{look % COLOURS}")
    named = width > 6.2 * len(kind) + 6
    text = tag("text", kind, x=x + width / 2, y=y + BAR / 2 + 4, text_anchor="middle") if named else Html("")
    return tag("g", tag("title", said), rect, text)
