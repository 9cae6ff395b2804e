"""The charts, as SVG: lines with intervals, and histograms. Pure functions of numbers.

Nothing is told by colour alone: series differ by marker and dashes as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sparring.pipeline.report.html.axes import (
    COLOURS,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Frame,
    dash,
    grid,
    labelled,
    marker,
    padded,
    ticks,
)
from sparring.pipeline.report.html.bins import Counts
from sparring.pipeline.report.html.markup import Html, join, number, tag

NARROW = (270.0, 190.0)
"""Width and height of a histogram, of which four stand beside each other."""
DODGE = 7.0
"""Between series at one place, so that intervals do not cover each other."""
DODGED = 24.0
"""From the first to the last of them, at most."""
MARKED = 24
"""Points of a line that are still marked, each one."""
DRAWN = 300
"""Points of a line that are drawn: of longer ones the means of as many stretches."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value and, where it has one, its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: `look` numbers its marker, dashes and colour. A point None breaks it."""

    name: str
    look: int
    points: Sequence[Point | None]

    @property
    def there(self) -> list[Point]:
        """The points without the breaks."""
        return [point for point in self.points if point]


@dataclass(frozen=True, kw_only=True)
class Lines:
    """A chart of lines."""

    title: str
    series: Sequence[Series]
    x_name: str = "iteration"
    x_ticks: Sequence[tuple[float, str]] | None = None
    level: float | None = None
    """Where a grey line goes through: 1/2 for win rates."""
    dodge: bool = False
    drawn: int = DRAWN
    """Points of a line that are drawn, at most."""
    splits: Sequence[tuple[float, str]] = field(default=())
    """Where upright lines part the chart, and what stands beside them."""


def lines(chart: Lines) -> Html:
    """Return the chart with its title and, for several series, its legend."""
    series = [replace(one, points=thinned(one.points, chart.drawn)) for one in chart.series if one.there]
    if not series:
        return Html("")
    points = [point for one in series for point in one.there]
    xs = [point.x for point in points]
    ys = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    frame = Frame(padded(xs, 0.06), padded([*ys, *([chart.level] if chart.level is not None else [])]))
    marks = chart.x_ticks if chart.x_ticks is not None else _whole(frame)
    parts = [grid(frame, marks, chart.x_name), *(_split(frame, *one) for one in chart.splits)]
    if chart.level is not None:
        parts.append(tag("path", d=f"M{LEFT:g} {frame.at_y(chart.level):.2f}H{frame.right:g}", class_="level"))
    for place, one in enumerate(series):
        aside = (place - (len(series) - 1) / 2) * min(DODGE, DODGED / len(series)) if chart.dodge else 0.0
        parts.append(_line(frame, one, aside))
    return figure(chart.title, picture(chart.title, parts), [key(one) for one in series])


def _whole(frame: Frame) -> list[tuple[float, str]]:
    return [(tick, f"{tick:.0f}") for tick in ticks(*frame.x, most=8) if tick == round(tick)]


def _split(frame: Frame, x: float, name: str) -> Html:
    at = frame.at_x(x)
    line = tag("path", d=f"M{at:.2f} {TOP:g}V{frame.bottom:g}", class_="split")
    return join([line, tag("text", name, x=at + 3, y=TOP - 2, class_="name")])


def _line(frame: Frame, one: Series, aside: float) -> Html:
    path, pen = [], "M"
    for point in one.points:
        if point is None:
            pen = "M"
            continue
        path.append(f"{pen}{frame.at_x(point.x) + aside:.2f} {frame.at_y(point.y):.2f}")
        pen = "L"
    line = tag("path", d="".join(path), class_=f"line c{one.look % COLOURS}", stroke_dasharray=dash(one.look))
    marked = len(one.there) <= MARKED
    return join([line, *(_point(frame, one, point, aside, marked) for point in one.there)])


def _point(frame: Frame, one: Series, point: Point, aside: float, marked: bool) -> Html:
    x, y = frame.at_x(point.x) + aside, frame.at_y(point.y)
    parts = []
    if point.low is not None and point.high is not None:
        low, high = frame.at_y(point.low), frame.at_y(point.high)
        reach = f"M{x - 3:.2f} {high:.2f}h6m-3 0V{low:.2f}m-3 0h6"
        parts.append(tag("path", d=reach, class_=f"reach c{one.look % COLOURS}"))
    if marked:
        parts.append(marker(one.look, x, y))
    return tag("g", tag("title", _said(one.name, point)), *parts) if parts else Html("")


def _said(name: str, point: Point) -> str:
    interval = "" if point.low is None else f" [{point.low:.3f}, {point.high:.3f}]"
    return f"{name}: {point.y:.4g}{interval}"


def thinned(points: Sequence[Point | None], most: int) -> list[Point | None]:
    """Return the points, or of more than `most` of them the means of `most` or fewer stretches; breaks stay."""
    every = -(-len(points) // most)
    if every == 1:
        return list(points)
    found: list[Point | None] = []
    held: list[Point] = []
    for point in [*points, None]:
        if point:
            held.append(point)
        if held and (point is None or len(held) == every):
            n = len(held)
            found.append(Point(x=sum(p.x for p in held) / n, y=sum(p.y for p in held) / n))
            held = []
        if point is None:
            found.append(None)
    return found[:-1]


def histogram(title: str, x_name: str, first: Counts, second: Counts | None = None) -> Html:
    """Return the shares of the values by bin, in percent: the first one filled, the second one a dashed outline."""
    shown = [one for one in (first, second) if one and one.n]
    if not shown:
        return Html("")
    most = max(max(one.counts) / one.n for one in shown)
    frame = Frame((first.low, first.high), (0.0, 100 * most * 1.08), *NARROW)
    parts = [grid(frame, labelled(*frame.x), x_name)]
    for one in shown:
        said = tag("title", f"{one.name}: {one.n:,} values")
        dashes = dash(1) if one is second else None
        parts.append(tag("path", said, d=outline(frame, one), class_=_drawn(one, second), stroke_dasharray=dashes))
    keys = [
        (one.name, tag("path", d="M2 2H26V10H2z", class_=_drawn(one, second), stroke_dasharray=dash(1)))
        for one in shown
    ]
    return figure(title, picture(title, parts, *NARROW), keys)


def _drawn(one: Counts, second: Counts | None) -> str:
    return "line c1" if one is second else "filled"


def outline(frame: Frame, one: Counts) -> str:
    """Return the path of a histogram's steps, in percent of its values, closed along the bottom."""
    width = (one.high - one.low) / len(one.counts)
    path = f"M{number(frame.at_x(one.low))} {number(frame.at_y(0.0))}"
    for i, count in enumerate(one.counts):
        path += f"V{number(frame.at_y(100 * count / one.n))}H{number(frame.at_x(one.low + (i + 1) * width))}"
    return path + f"V{number(frame.at_y(0.0))}"


def figure(title: str, drawn: Html, keys: Sequence[tuple[str, Html]]) -> Html:
    """Return a picture under its title, with a legend (name, sample) where there is more than one series."""
    legend = [tag("li", tag("svg", key, viewBox="0 0 28 12", aria_hidden="true"), name) for name, key in keys]
    under = tag("ul", *legend, class_="legend") if len(keys) > 1 else Html("")
    return tag("figure", tag("figcaption", title), drawn, under)


def key(one: Series) -> tuple[str, Html]:
    """Return the legend's entry of a series."""
    line = tag("path", d="M0 6H28", class_=f"line c{one.look % COLOURS}", stroke_dasharray=dash(one.look))
    return one.name, join([line, marker(one.look, 14, 6)])


def picture(title: str, parts: Sequence[Html], width: float = WIDTH, height: float = HEIGHT) -> Html:
    """Return the SVG element of a chart; a reader that sees none is told the title."""
    return tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title)
