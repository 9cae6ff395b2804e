"""The comparison of arms on the page: what it is, the chart, the table, and its limits."""

from __future__ import annotations

from collections.abc import Sequence

from sparring.pipeline.report.compare import Difference
from sparring.pipeline.report.differences import HEADS, about, compared, rows, title, what
from sparring.pipeline.report.html.curves import LOOKS, charts
from sparring.pipeline.report.html.markup import Html, join, table, tag
from sparring.pipeline.report.html.whiskers import Whisker, whiskers
from sparring.pipeline.report.judging import JUDGES


def differences(found: Sequence[Difference]) -> Html:
    """Return the comparison of the arms with the first one; '' for a single arm."""
    if not found:
        return Html("")
    baseline, there = found[0].baseline, compared(found)
    parts = [tag("h2", title(baseline))]
    if there:
        parts += [tag("p", what(baseline), class_="quiet"), table(HEADS, rows(found), "differences"), _chart(there)]
    notes = tag("ul", *(tag("li", line) for line in about(found)), class_="quiet")
    return join([*parts, notes])


def _chart(there: Sequence[Difference]) -> Html:
    by_arm: dict[str, list[Whisker]] = {}
    for one in there:
        estimate, look = one.estimate, LOOKS[one.judge]
        drawn = Whisker(name=JUDGES[one.judge], look=look, value=estimate.mean, low=estimate.low, high=estimate.high)
        by_arm.setdefault(f"{one.arm}, iteration {one.iteration}", []).append(drawn)
    return charts([whiskers("Difference of win rates", "← worse · better →", [*by_arm.items()])])
