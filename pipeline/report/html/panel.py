"""The collapse panel on the page: a small table for each group, as many beside each other as there is room for."""

from __future__ import annotations

from collections.abc import Sequence

from sparring.pipeline.diagnostics.panel import Panel
from sparring.pipeline.report.html.gather import Story
from sparring.pipeline.report.html.markup import Html, join, table, tag
from sparring.pipeline.report.panel import Row, groups


def panel(story: Story) -> Html:
    """Return the panel of every iteration; '' without any figure."""
    boxes = [_box(title, rows, story.panels) for title, rows in groups(story.panels)]
    return tag("div", *boxes, class_="panel") if boxes else Html("")


def _box(title: str, rows: Sequence[Row], panels: Sequence[Panel]) -> Html:
    heads = ("iteration", *(str(one.iteration) for one in panels))
    cells = [[join([row.words, tag("code", row.name)]), *map(_under, row.cells)] for row in rows]
    return tag("div", tag("h3", title[0].upper() + title[1:]), table(heads, cells, "numbers"))


def _under(cell: str) -> str:
    """Return a figure with its interval in a line of its own."""
    return cell.replace(" [", "\n[")
