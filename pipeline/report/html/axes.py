"""Where things lie in a chart: ticks, scales, and how a series is told from another without colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparring.pipeline.report.html.markup import Html, join, tag

WIDTH, HEIGHT = 360.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 34.0
MARKERS = ("circle", "square", "triangle", "diamond", "down", "plus", "cross", "bar")
DASHES = (None, "6 3", "2 2", "8 3 2 3", "12 3", "1 3", "6 2 1 2 1 2")
COLOURS = 8


@dataclass(frozen=True)
class Frame:
    """The rectangle in which a chart is drawn, and the values at its edges."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def right(self) -> float:
        """Where the axis from left to right ends."""
        return self.width - RIGHT

    @property
    def bottom(self) -> float:
        """Where the axis from left to right lies."""
        return self.height - BOTTOM

    def at_x(self, value: float) -> float:
        """Return the horizontal place of a value, from the left edge of the picture."""
        low, high = self.x
        return LEFT + (value - low) / (high - low) * (self.right - LEFT)

    def at_y(self, value: float) -> float:
        """Return the vertical place of a value, from the top: larger values lie higher."""
        low, high = self.y
        return self.bottom - (value - low) / (high - low) * (self.bottom - TOP)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` round values from low to high, a step of 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10, 20) if len(_multiples(low, high, m * power)) <= most)
    return [i * step for i in _multiples(low, high, step)]


def _multiples(low: float, high: float, step: float) -> range:
    return range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """Return the range of the values, wider by `share` on both sides; of one value, wider by a tenth of it."""
    low, high = min(values), max(values)
    pad = (high - low) * share or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def labelled(low: float, high: float) -> list[tuple[float, str]]:
    """Return the ticks with their labels: as many decimals as tell them apart, thousands where they are long."""
    values = ticks(low, high)
    step = values[1] - values[0] if len(values) > 1 else high - low
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if max(abs(low), abs(high)) >= 10_000:
        return [(value, f"{value / 1000:g}k".replace("-", "−")) for value in values]
    return [(value, f"{value:.{decimals}f}".replace("-", "−")) for value in values]


def grid(frame: Frame, x_ticks: Sequence[tuple[float, str]], x_name: str) -> Html:
    """Return the lines and labels of both axes."""
    bottom, right = frame.bottom, frame.right
    parts = []
    for value, label in labelled(*frame.y):
        y = frame.at_y(value)
        parts.append(tag("path", d=f"M{LEFT:g} {y:.2f}H{right:g}", class_="grid"))
        parts.append(tag("text", label, x=LEFT - 6, y=y + 3.5, text_anchor="end"))
    for value, label in x_ticks:
        parts.append(tag("text", label, x=frame.at_x(value), y=bottom + 15, text_anchor="middle"))
    parts.append(tag("path", d=f"M{LEFT:g} {bottom:g}H{right:g}", class_="axis"))
    parts.append(tag("text", x_name, x=(LEFT + right) / 2, y=frame.height - 4, text_anchor="middle", class_="name"))
    return join(parts)


def marker(look: int, x: float, y: float, r: float = 3.6) -> Html:
    """Return the marker of the series number `look` at (x, y), a path of radius r."""
    shape = MARKERS[look % len(MARKERS)]
    at = f"M{x:.2f} {y:.2f}"
    paths = {
        "circle": f"{at}m{-r:g} 0a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z",
        "square": f"{at}m{-r:g} {-r:g}h{2 * r:g}v{2 * r:g}h{-2 * r:g}z",
        "triangle": f"{at}m0 {-1.2 * r:g}l{1.2 * r:g} {2 * r:g}h{-2.4 * r:g}z",
        "diamond": f"{at}m0 {-1.4 * r:g}l{1.2 * r:g} {1.4 * r:g}l{-1.2 * r:g} {1.4 * r:g}l{-1.2 * r:g} {-1.4 * r:g}z",
        "down": f"{at}m0 {1.2 * r:g}l{1.2 * r:g} {-2 * r:g}h{-2.4 * r:g}z",
        "plus": f"{at}m{-r:g} 0h{2 * r:g}m{-r:g} {-r:g}v{2 * r:g}",
        "cross": f"{at}m{-r:g} {-r:g}l{2 * r:g} {2 * r:g}m0 {-2 * r:g}l{-2 * r:g} {2 * r:g}",
        "bar": f"{at}m{-1.3 * r:g} 0h{2.6 * r:g}",
    }
    return tag("path", d=paths[shape], class_=f"mark c{look % COLOURS}")


def dash(look: int) -> str | None:
    """Return the dashes of the line of series number `look`, None for a solid one."""
    return DASHES[look % len(DASHES)]
