"""Shapes of SVG, and the axes of a chart. Sizes are pixels of the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 360.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 34.0


class Shape(NamedTuple):
    """An element of SVG. `title` is what a pointer on it shows."""

    tag: str
    attributes: Mapping[str, str]
    text: str = ""
    title: str = ""
    inside: Sequence[Shape] = ()


def shape(tag: str, text: str = "", *, title: str = "", inside: Sequence[Shape] = (), **attributes: object) -> Shape:
    """Return a shape; names of attributes: `class_` for class, `text_anchor` for text-anchor; None leaves one out."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    written = {key: number(value) if isinstance(value, float) else str(value) for key, value in named.items()}
    return Shape(tag, written, text, title, inside)


def number(value: float) -> str:
    """Return a coordinate with at most two decimals: `12`, `3.25`."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


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

    def grid(self, x_ticks: Sequence[tuple[float, str]], x_name: str) -> list[Shape]:
        """Return the lines and labels of both axes."""
        bottom, right, shapes = self.bottom, self.right, []
        for value, label in labelled(*self.y):
            y = self.at_y(value)
            shapes.append(shape("path", d=f"M{LEFT:g} {y:.2f}H{right:g}", class_="grid"))
            shapes.append(shape("text", label, x=LEFT - 6, y=y + 3.5, text_anchor="end"))
        for value, label in x_ticks:
            shapes.append(shape("text", label, x=self.at_x(value), y=bottom + 15, text_anchor="middle"))
        shapes.append(shape("path", d=f"M{LEFT:g} {bottom:g}H{right:g}", class_="axis"))
        middle = (LEFT + right) / 2
        return [*shapes, shape("text", x_name, x=middle, y=self.height - 4, text_anchor="middle", class_="name")]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` round values from low to high, a step of 1, 2 or 5 times a power of ten apart."""

    def multiples(step: float) -> range:
        return range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)

    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * power for m in (1, 2, 5, 10, 20) if len(multiples(m * power)) <= most)
    return [i * step for i in multiples(step)]


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """Return the range of the values, wider by `share` on both sides; of one value, wider by a tenth of it."""
    low, high = min(values), max(values)
    pad = (high - low) * share or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def labelled(low: float, high: float) -> list[tuple[float, str]]:
    """Return the ticks with their labels: as many decimals as make them differ, thousands where they are long."""
    values = ticks(low, high)
    step = values[1] - values[0] if len(values) > 1 else high - low
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if max(abs(low), abs(high)) >= 10_000:
        return [(value, f"{value / 1000:g}k".replace("-", "−")) for value in values]
    return [(value, f"{value:.{decimals}f}".replace("-", "−")) for value in values]
