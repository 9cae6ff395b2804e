"""The charts of a report that run over iterations and over optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparring.pipeline.diagnostics.panel import Record
from sparring.pipeline.report.answer import OPPONENTS
from sparring.pipeline.report.html.gather import Story
from sparring.pipeline.report.html.markup import Html, join, tag
from sparring.pipeline.report.html.svg import DRAWN, Lines, Point, Series, lines
from sparring.pipeline.report.judging import JUDGES
from sparring.pipeline.report.table import Steps, compared

LOOKS = {"oracle": 0, "second": 1}
"""Numbers of marker, dashes and colour."""
BOXED = 72
"""Iterations of all arms together that have boxes of their own in a section."""


def charts(parts: Sequence[str], size: str = "") -> Html:
    """Return the charts side by side, as many as there is room for, more of size `small`; '' without any."""
    there = [part for part in parts if part]
    return tag("div", *there, class_=f"charts {size}".strip()) if there else Html("")


def win_rates(stories: Sequence[Story]) -> Html:
    """Return the win rates over iterations: by judge for one arm, by arm for several."""
    if len(stories) == 1:
        return charts([_one(stories[0], opponent) for opponent in OPPONENTS])
    return charts([_overlaid(stories, judge) for judge in JUDGES])


def _one(story: Story, opponent: str) -> Html:
    series = [
        Series(name=name, look=LOOKS[judge], points=_rates(story, judge, opponent)) for judge, name in JUDGES.items()
    ]
    return lines(Lines(title=f"Win rate against {OPPONENTS[opponent]}", series=series, level=0.5, dodge=True))


def _overlaid(stories: Sequence[Story], judge: str) -> Html:
    series = [Series(name=s.name, look=look, points=_rates(s, judge, "base")) for look, s in enumerate(stories)]
    return lines(Lines(title=f"Win rate against the base, {JUDGES[judge]}", series=series, level=0.5, dodge=True))


def _rates(story: Story, judge: str, opponent: str) -> list[Point]:
    rows = {t: compared(steps, judge, opponent) for t, steps in story.done.items()}
    return [
        Point(x=t, y=row["win_rate"], low=row["low"], high=row["high"])
        for t, row in rows.items()
        if row and row["win_rate"] is not None
    ]


def lengths(stories: Sequence[Story]) -> Html:
    """Return what held-out responses are like, by policy: 0 is the base."""
    titles = {
        "length_mean": "Tokens of held-out responses, mean",
        "length_p95": "Tokens of held-out responses, p95",
        "cap_rate": "Held-out responses cut at the limit, %",
    }
    return charts([_by_policy(stories, key, title) for key, title in titles.items()])


def _by_policy(stories: Sequence[Story], key: str, title: str) -> Html:
    factor = 100.0 if key.endswith("_rate") else 1.0
    series = []
    for look, story in enumerate(stories):
        summaries = {t: heldout(t, steps) for t, steps in story.every.items()}
        there = [(t, s[key]) for t, s in summaries.items() if s.get(key) is not None]
        points = [Point(x=t, y=factor * value) for t, value in there]
        series.append(Series(name=story.name, look=look, points=points))
    return lines(Lines(title=title, series=series, x_name="policy (0: the base)", dodge=len(stories) > 1))


def heldout(t: int, steps: Steps) -> Mapping[str, Any]:
    """Return the summary of the held-out responses of policy t, {} where there are none."""
    label = "sample_heldout" if t else "sample_base"
    return steps[label].summary if label in steps else {}


def training(story: Story, points: int = DRAWN) -> Html:
    """Return the curves of training over all its optimizer steps, parted by iteration; points: of a line, at most."""
    panels = {
        "Loss": ("loss",),
        "Log-ratio to the reference, nats": ("h_w", "h_l"),
        "Gradient norm before clipping": ("grad_norm",),
    }
    return charts([_over_steps(story, title, keys, points) for title, keys in panels.items()])


def band(story: Story, points: int = DRAWN) -> Html:
    """Return the disentanglement diagnostics over optimizer steps, measured at some of them, on the output head."""
    titles = {
        "Pairs in the band, measured on the output head, %": ("in_band", "reversed", "rho_negative"),
        "Incentives d_w/d_l, and r* of the output head": ("incentive_ratio", "r_star"),
        "Distance of states ‖u_w − u_l‖": ("distance",),
    }
    drawn = ((title, keys, 100.0 if title.endswith("%") else 1.0) for title, keys in titles.items())
    return charts([_over_steps(story, title, keys, points, factor) for title, keys, factor in drawn])


NAMED = {
    "h_w": "chosen, h_w",
    "h_l": "rejected, h_l",
    "in_band": "in the band",
    "rho_negative": "ρ ≤ 0: any ratio serves",
    "incentive_ratio": "d_w/d_l",
    "r_star": "r*",
}


def _over_steps(story: Story, title: str, keys: Sequence[str], points: int, factor: float = 1.0) -> Html:
    begins = _begins(story.records)
    series = [
        Series(name=NAMED.get(key, key), look=look, points=_points(story.records, begins, key, factor))
        for look, key in enumerate(keys)
    ]
    splits = [(begin + 0.5, f"iteration {t}") for t, begin in begins.items()] if len(begins) > 1 else ()
    return lines(Lines(title=title, series=series, x_name="optimizer step", drawn=points, splits=splits))


def _begins(records: Mapping[int, Sequence[Record]]) -> dict[int, int]:
    """Return iteration -> optimizer steps before it."""
    begins, steps = {}, 0
    for t, rows in records.items():
        begins[t] = steps
        steps += rows[-1]["step"]
    return begins


def _points(
    records: Mapping[int, Sequence[Record]], begins: Mapping[int, int], key: str, factor: float
) -> list[Point | None]:
    points: list[Point | None] = []
    for t, rows in records.items():
        there = [row for row in rows if isinstance(row.get(key), int | float) and math.isfinite(row[key])]
        points += [Point(x=begins[t] + row["step"], y=factor * row[key]) for row in there]
        points.append(None)
    return points[:-1]


def by_arm(stories: Sequence[Story], drawn: Callable[[Story], Html]) -> Html:
    """Return what is drawn of each arm, under its name in boxes that open where there are several; '' without any.

    Of very many the first ones are drawn: as many as have BOXED iterations together.
    """
    most = max(1, BOXED // max(1, *(len(story.done) for story in stories)))
    made = [(story.name, drawn(story)) for story in stories[:most]]
    there = [(name, part) for name, part in made if part]
    if len(stories) == 1 or not there:
        return join(part for _, part in there)
    boxes = [
        tag("details", tag("summary", name), part, class_="arm", open=place == 0)
        for place, (name, part) in enumerate(there)
    ]
    if len(stories) > most:
        told = f"The first {most} of {len(stories)} arms; a report of fewer arms shows the others."
        boxes.append(tag("p", told, class_="quiet"))
    return join(boxes)
