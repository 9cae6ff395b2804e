"""The charts of the page as shapes of SVG, which the template draws. Pure functions of numbers; axes.py has the axes.

Nothing depends on colour alone: series differ by marker and dashes as well. Sizes are pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from sparring.pipeline.report.html.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    Shape,
    labelled,
    number,
    padded,
    shape,
    ticks,
)
from sparring.pipeline.report.spread import Histogram
from sparring.stages.plain import interval_text

NARROW = (270.0, 190.0)
"""Width and height of a histogram, of which four stand beside each other."""
DASHES = (None, "6 3", "2 2", "8 3 2 3", "12 3", "1 3", "6 2 1 2 1 2")
COLOURS = 8
DODGE, DODGED = 7.0, 24.0
"""Between series at one place, so that intervals do not cover each other; from the first to the last, at most."""
MARKED, DRAWN = 24, 300
"""Points of a line that are still marked, each one; and drawn: of longer ones the means of as many stretches."""
HEAD = 64.0
"""Width of the row names of a heat map; its head is half as high."""
STRONGEST, FAINTEST = 0.55, 0.1
"""Opacity of the win rate that is farthest from 1/2, so that text on it can be read; and the distance from 1/2 that has
it at least: what is near 1/2 stays pale."""
BAR, NAME = 24.0, 52.0
"""Height of a bar, and the width of its name and of its sum."""
INSET, NAMED, LINE, GAP = 16.0, 16.0, 15.0, 7.0
"""Of whiskers: from the left edge to the smallest value; heights of a row's name, of a whisker, and between rows."""
LONGEST = 52
"""Characters of a row's name that fit."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture under its title; the legend has a sample of each series, where there are several."""

    title: str
    shapes: Sequence[Shape]
    width: float = WIDTH
    height: float = HEIGHT
    legend: Sequence[tuple[str, Shape]] = ()


class Point(NamedTuple):
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
    def known(self) -> list[Point]:
        """The points without the breaks."""
        return [point for point in self.points if point]


@dataclass(frozen=True, kw_only=True)
class Whisker:
    """A difference; `look` numbers marker and colour."""

    name: str
    look: int
    value: float
    low: float
    high: float


def marker(look: int, x: float, y: float, r: float = 3.6) -> Shape:
    """Return the marker of the series number `look` at (x, y), a path of radius r."""
    around = (
        f"m{-r:g} 0a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z",  # circle
        f"m{-r:g} {-r:g}h{2 * r:g}v{2 * r:g}h{-2 * r:g}z",  # square
        f"m0 {-1.2 * r:g}l{1.2 * r:g} {2 * r:g}h{-2.4 * r:g}z",  # triangle
        f"m0 {-1.4 * r:g}l{1.2 * r:g} {1.4 * r:g}l{-1.2 * r:g} {1.4 * r:g}l{-1.2 * r:g} {-1.4 * r:g}z",  # diamond
        f"m0 {1.2 * r:g}l{1.2 * r:g} {-2 * r:g}h{-2.4 * r:g}z",  # triangle, upside down
        f"m{-r:g} 0h{2 * r:g}m{-r:g} {-r:g}v{2 * r:g}",  # plus
        f"m{-r:g} {-r:g}l{2 * r:g} {2 * r:g}m0 {-2 * r:g}l{-2 * r:g} {2 * r:g}",  # cross
        f"m{-1.3 * r:g} 0h{2.6 * r:g}",  # bar
    )
    return shape("path", d=f"M{x:.2f} {y:.2f}{around[look % len(around)]}", class_=f"mark c{look % COLOURS}")


# Lines


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str = "iteration",
    level: float | None = None,
    dodge: bool = False,
    most: int = DRAWN,
    splits: Sequence[tuple[float, str]] = (),
) -> Chart | None:
    """Return lines with intervals, None without a point.

    level: where a grey line goes through, 1/2 for win rates. most: points of a line that are drawn. splits: where
    upright lines part the chart, and what stands beside them.
    """
    drawn = [replace(one, points=thinned(one.points, most)) for one in series if one.known]
    if not drawn:
        return None
    points = [point for one in drawn for point in one.known]
    ys = [y for p in points for y in (p.y, p.low, p.high, level) if y is not None]
    frame = Frame(padded([point.x for point in points], 0.06), padded(ys))
    integers = [(tick, f"{tick:.0f}") for tick in ticks(*frame.x, most=8) if tick == round(tick)]
    shapes = frame.grid(integers, x_name)
    for x, name in splits:
        at = frame.at_x(x)
        shapes.append(shape("path", d=f"M{at:.2f} {TOP:g}V{frame.bottom:g}", class_="split"))
        shapes.append(shape("text", name, x=at + 3, y=TOP - 2, class_="name"))
    if level is not None:
        shapes.append(shape("path", d=f"M{LEFT:g} {frame.at_y(level):.2f}H{frame.right:g}", class_="level"))
    legend = []
    for place, one in enumerate(drawn):
        aside = (place - (len(drawn) - 1) / 2) * min(DODGE, DODGED / len(drawn)) if dodge else 0.0
        shapes += _line(frame, one, aside)
        dashes = DASHES[one.look % len(DASHES)]
        line = shape("path", d="M0 6H28", class_=f"line c{one.look % COLOURS}", stroke_dasharray=dashes)
        sample = [line, marker(one.look, 14, 6)]
        legend.append((one.name, shape("g", inside=sample)))
    return Chart(title=title, shapes=shapes, legend=legend)


def _line(frame: Frame, one: Series, aside: float) -> list[Shape]:
    """Return the line of a series, its intervals and, where they are few, its markers."""
    path, pen, points = "", "M", []
    for point in one.points:
        if point is None:
            pen = "M"
            continue
        x, y = frame.at_x(point.x) + aside, frame.at_y(point.y)
        path += f"{pen}{x:.2f} {y:.2f}"
        pen = "L"
        inside, interval = [], ""
        if point.low is not None and point.high is not None:
            low, high = frame.at_y(point.low), frame.at_y(point.high)
            reach = f"M{x - 3:.2f} {high:.2f}h6m-3 0V{low:.2f}m-3 0h6"
            inside.append(shape("path", d=reach, class_=f"reach c{one.look % COLOURS}"))
            interval = f" [{point.low:.3f}, {point.high:.3f}]"
        if len(one.known) <= MARKED:
            inside.append(marker(one.look, x, y))
        if inside:
            points.append(shape("g", title=f"{one.name}: {point.y:.4g}{interval}", inside=inside))
    dashes = DASHES[one.look % len(DASHES)]
    return [shape("path", d=path, class_=f"line c{one.look % COLOURS}", stroke_dasharray=dashes), *points]


def thinned(points: Sequence[Point | None], most: int) -> list[Point | None]:
    """Return the points, or of more than `most` of them the means of `most` or fewer stretches; breaks stay."""
    every = -(-len(points) // most)
    if every == 1:
        return list(points)
    means: list[Point | None] = []
    stretch: list[Point] = []
    for point in [*points, None]:
        if point:
            stretch.append(point)
        if stretch and (point is None or len(stretch) == every):
            n = len(stretch)
            means.append(Point(x=sum(p.x for p in stretch) / n, y=sum(p.y for p in stretch) / n))
            stretch = []
        if point is None:
            means.append(None)
    return means[:-1]


# Histograms, heat maps, bars, whiskers


def histogram_chart(title: str, x_name: str, first: Histogram, second: Histogram | None = None) -> Chart | None:
    """Return the shares of the values by bin, in percent: the first one filled, the second one a dashed outline."""
    counted = [one for one in (first, second) if one and one.n]
    if not counted:
        return None
    most = max(max(one.counts) / one.n for one in counted)
    frame = Frame((first.low, first.high), (0.0, 100 * most * 1.08), *NARROW)
    shapes, legend = frame.grid(labelled(*frame.x), x_name), []
    for one in counted:
        look = "line c1" if one is second else "filled"
        said, dashes = f"{one.name}: {one.n:,} values", DASHES[1] if one is second else None
        shapes.append(shape("path", title=said, d=outline(frame, one), class_=look, stroke_dasharray=dashes))
        legend.append((one.name, shape("path", d="M2 2H26V10H2z", class_=look, stroke_dasharray=DASHES[1])))
    return Chart(title=title, shapes=shapes, width=NARROW[0], height=NARROW[1], legend=legend)


def outline(frame: Frame, one: Histogram) -> str:
    """Return the path of a histogram's steps, in percent of its values, closed along the bottom."""
    width = (one.high - one.low) / len(one.counts)
    path = f"M{number(frame.at_x(one.low))} {number(frame.at_y(0.0))}"
    for i, count in enumerate(one.counts):
        path += f"V{number(frame.at_y(100 * count / one.n))}H{number(frame.at_x(one.low + (i + 1) * width))}"
    return path + f"V{number(frame.at_y(0.0))}"


def heat_map(
    title: str,
    names: Sequence[str],
    cells: Mapping[tuple[int, int], float],
    ends: Mapping[tuple[int, int], tuple[float, float]],
) -> Chart:
    """Return the matrix of win rates, row against column; cells that were not played are empty, the diagonal a dot.

    cells: (row, column) -> win rate of row, in [0, 1]. Above 1/2 it is blue, below orange, and the number says it.
    ends: the same -> its interval, where it is known; ~ marks the numbers whose interval contains 1/2.
    """
    size = min((WIDTH - HEAD) / len(names), 56.0)
    reach = max([FAINTEST, *(abs(value - 0.5) for value in cells.values())])
    head = HEAD / 2
    shapes = [
        shape("text", name, x=HEAD + (j + 0.5) * size, y=head - 8, text_anchor="middle") for j, name in enumerate(names)
    ]
    for i, name in enumerate(names):
        top = head + i * size
        shapes.append(shape("text", name, x=HEAD - 8, y=top + size / 2 + 4, text_anchor="end"))
        for j, other in enumerate(names):
            x, value, interval = HEAD + j * size, cells.get((i, j)), ends.get((i, j))
            sign, said, look, opacity = "·" if i == j else "", "", "empty", None
            if value is not None:
                unsure = interval is not None and interval[0] <= 0.5 <= interval[1]
                sign = f"{'~' if unsure else ''}{f'{value:.2f}'.lstrip('0')}"
                said = f"{name} against {other}: "
                said += interval_text(value, *interval) if interval else f"{value:.3f}"
                look, opacity = f"cell {'c0' if value >= 0.5 else 'c1'}", STRONGEST * abs(value - 0.5) / reach
            inner = size - 2
            box = shape("rect", class_=look, fill_opacity=opacity, x=x + 1, y=top + 1, width=inner, height=inner)
            text = shape("text", sign, x=x + size / 2, y=top + size / 2 + 4, text_anchor="middle")
            shapes.append(shape("g", title=said, inside=[box, text]))
    return Chart(title=title, shapes=shapes, height=head + len(names) * size + 4)


def bar_chart(
    title: str, unit: str, rows: Sequence[tuple[str, Mapping[str, float]]], kinds: Sequence[str]
) -> Chart | None:
    """Return stacked bars, one a row, None without any; kinds: what a bar may be made of, in order, each with its fill.

    rows: (name, kind -> value). The sum stands beside the bar; parts wide enough carry their name.
    """
    most = max((sum(values.values()) for _, values in rows), default=0.0)
    if not most:
        return None
    scale, shapes = (WIDTH - 2 * NAME) / most, []
    for place, (name, values) in enumerate(rows):
        top, x = 4 + place * (BAR + 8), NAME
        shapes.append(shape("text", name, x=NAME - 6, y=top + BAR / 2 + 4, text_anchor="end"))
        for look, kind in enumerate(kinds):
            width = values.get(kind, 0.0) * scale
            if width:
                bar = shape("rect", x=x, y=top, width=max(width - 1, 0.5), height=BAR, class_=f"bar c{look % COLOURS}")
                text = shape("text", kind, x=x + width / 2, y=top + BAR / 2 + 4, text_anchor="middle")
                inside = [bar, text] if width > 6.2 * len(kind) + 6 else [bar]
                shapes.append(shape("g", title=f"{name}, {kind}: {values[kind]:,.1f} {unit}", inside=inside))
            x += width
        shapes.append(shape("text", f"{sum(values.values()):,.0f}", x=x + 6, y=top + BAR / 2 + 4))
    legend = [
        (kind, shape("rect", x=2, y=1, width=24, height=10, class_=f"bar c{look % COLOURS}"))
        for look, kind in enumerate(kinds)
    ]
    return Chart(title=title, shapes=shapes, height=len(rows) * (BAR + 8) + 4, legend=legend)


def timeline_chart(
    title: str, rows: Sequence[tuple[str, Sequence[tuple[str, str, float, float]]]], kinds: Sequence[str]
) -> Chart | None:
    """Return bars from the begin to the end of each stretch, None without any; time runs from left to right.

    rows: (name, [(kind, label, begin, end)]) in seconds; those of a row that overlap share its height. kinds: in order,
    each with its fill.
    """
    latest = max((end for _, stretches in rows for _, _, _, end in stretches), default=0.0)
    if not latest:
        return None
    scale, shapes, bottom = (WIDTH - NAME - RIGHT) / latest, [], 4 + len(rows) * (BAR + 8)
    for value, label in labelled(0.0, latest):
        shapes.append(shape("path", d=f"M{NAME + value * scale:.2f} 0V{bottom:g}", class_="grid"))
        shapes.append(shape("text", label, x=NAME + value * scale, y=bottom + 15, text_anchor="middle"))
    for place, (name, stretches) in enumerate(rows):
        top, ends = 4 + place * (BAR + 8), [0.0, 0.0]
        shapes.append(shape("text", name, x=NAME - 6, y=top + BAR / 2 + 4, text_anchor="end"))
        for kind, label, begin, end in stretches:
            lane = 0 if begin >= ends[0] else 1
            ends[lane] = end
            fill = f"bar c{kinds.index(kind) % COLOURS}"
            x, width, y = NAME + begin * scale, max((end - begin) * scale - 0.5, 0.5), top + lane * BAR / 2
            bar = shape("rect", x=x, y=y, width=width, height=BAR / 2, class_=fill)
            shapes.append(shape("g", title=f"{name}, {label}: {begin:,.0f} to {end:,.0f} s", inside=[bar]))
    legend = [
        (kind, shape("rect", x=2, y=1, width=24, height=10, class_=f"bar c{look % COLOURS}"))
        for look, kind in enumerate(kinds)
    ]
    return Chart(title=title, shapes=shapes, height=bottom + BOTTOM, legend=legend)


def whisker_chart(title: str, x_name: str, rows: Sequence[tuple[str, Sequence[Whisker]]]) -> Chart | None:
    """Return a dot and an interval for each difference, left and right of 0; None without any. A row each."""
    every = [one for _, whiskers in rows for one in whiskers]
    if not every:
        return None
    low, high = padded([0.0, *(value for one in every for value in (one.value, one.low, one.high))])

    def at(value: float) -> float:
        return INSET + (value - low) / (high - low) * (WIDTH - RIGHT - INSET)

    heights = [NAMED + LINE * len(whiskers) + GAP for _, whiskers in rows]
    bottom, shapes = sum(heights), []
    for value, label in labelled(low, high):
        shapes.append(shape("path", d=f"M{at(value):.2f} 0V{bottom:g}", class_="grid"))
        shapes.append(shape("text", label, x=at(value), y=bottom + 15, text_anchor="middle"))
    shapes.append(shape("path", d=f"M{at(0.0):.2f} 0V{bottom:g}", class_="level"))
    for place, (name, whiskers) in enumerate(rows):
        top = sum(heights[:place])
        short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        shapes.append(shape("text", short, title=name, x=INSET, y=top + NAMED - 4, class_="over"))
        for line, one in enumerate(whiskers):
            y = top + NAMED + (line + 0.5) * LINE
            reach = f"M{at(one.low):.2f} {y - 3:.2f}v6m0 -3H{at(one.high):.2f}m0 -3v6"
            inside = [shape("path", d=reach, class_=f"reach c{one.look % COLOURS}"), marker(one.look, at(one.value), y)]
            said = f"{name}, {one.name}: {interval_text(one.value, one.low, one.high, '+z.3f')}"
            shapes.append(shape("g", title=said, inside=inside))
    shapes.append(shape("path", d=f"M{INSET:g} {bottom:g}H{WIDTH - RIGHT:g}", class_="axis"))
    middle = (INSET + WIDTH - RIGHT) / 2
    shapes.append(shape("text", x_name, x=middle, y=bottom + BOTTOM - 4, text_anchor="middle", class_="name"))
    looks = {one.name: one.look for one in every}
    legend = []
    for name, look in looks.items():
        reach_sample = shape("path", d="M2 3v6m0 -3H26m0 -3v6", class_=f"reach c{look % COLOURS}")
        legend.append((name, shape("g", inside=[reach_sample, marker(look, 14, 6)])))
    return Chart(title=title, shapes=shapes, height=bottom + BOTTOM, legend=legend)
