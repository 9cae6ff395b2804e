"""Charts, by coordinates worked out by hand: a picture of 360 x 210 whose axes run 46…348 and 176…10."""

import re

import pytest

from sparring.pipeline.report.html import charts
from sparring.pipeline.report.html.axes import Frame, Shape, labelled, padded, shape, ticks
from sparring.pipeline.report.html.charts import (
    LONGEST,
    Chart,
    Point,
    Series,
    Whisker,
    bar_chart,
    heat_map,
    histogram_chart,
    line_chart,
    outline,
    thinned,
    whisker_chart,
)
from sparring.pipeline.report.html.page import templates
from sparring.pipeline.report.spread import Histogram

PARTS = templates().get_template("parts.html.jinja").module


def drawn_by(chart: Chart | None) -> str:
    """The chart as the page has it."""
    assert chart is not None
    return str(PARTS.figure(chart))  # type: ignore[attr-defined]


def element(one: Shape) -> str:
    """A shape as the page has it."""
    return str(PARTS.draw(one))  # type: ignore[attr-defined]


UNIT = Frame((0.0, 10.0), (0.0, 1.0))


def test_larger_values_lie_to_the_right_and_higher() -> None:
    assert [UNIT.at_x(x) for x in (0, 5, 10)] == [46, 197, 348]
    assert [UNIT.at_y(y) for y in (0, 0.5, 1)] == [176, 93, 10]


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.5, 1]),
        (0.38, 0.71, [0.4, 0.5, 0.6, 0.7]),
        (-9, 1, [-8, -6, -4, -2, 0]),
        (3490, 11300, [4000, 6000, 8000, 10000]),
        (0.499, 0.5011, [0.499, 0.4995, 0.5, 0.5005, 0.501]),
    ],
)
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(found)


def test_labels_have_the_decimals_that_tell_them_apart() -> None:
    def labels(low: float, high: float) -> list[str]:
        return [label for _, label in labelled(low, high)]

    assert labels(0.38, 0.71) == ["0.4", "0.5", "0.6", "0.7"] and labels(0.49, 0.57) == ["0.50", "0.52", "0.54", "0.56"]
    assert labels(-9, 1) == ["−8", "−6", "−4", "−2", "0"]
    assert labels(3490, 11300) == ["4k", "6k", "8k", "10k"] and labels(3500, 9000) == ["4000", "6000", "8000"]


def test_a_range_is_wider_than_its_values() -> None:
    assert padded([0.0, 1.0]) == (-0.08, 1.08)
    assert padded([2.0]) == (1.8, 2.2) and padded([0.0]) == (-1.0, 1.0)


def test_a_line_goes_through_its_points_and_its_intervals_reach_from_low_to_high() -> None:
    # x: 0…2 padded to -.12…2.12; y: 0…1 (with the level .5 and the interval) padded to -.08…1.08
    points = [Point(x=0, y=0), Point(x=1, y=0.5, low=0.0, high=1.0), Point(x=2, y=1)]
    drawn = drawn_by(line_chart("A <b>", [Series(name="one", look=1, points=points)], level=0.5))
    left, middle, right = 46 + 0.12 / 2.24 * 302, 197, 46 + 2.12 / 2.24 * 302
    bottom, top = 176 - 0.08 / 1.16 * 166, 176 - 1.08 / 1.16 * 166
    assert f'd="M{left:.2f} {bottom:.2f}L{middle:.2f} 93.00L{right:.2f} {top:.2f}"' in drawn
    assert f'd="M{middle - 3:.2f} {top:.2f}h6m-3 0V{bottom:.2f}m-3 0h6"' in drawn
    assert 'class="level" d="M46 93.00H348"' in drawn or 'd="M46 93.00H348" class="level"' in drawn
    assert 'stroke-dasharray="6 3"' in drawn and "one: 0.5 [0.000, 1.000]" in drawn
    assert "A &lt;b&gt;" in drawn and "<ul" not in drawn  # one series needs no legend


def test_series_differ_without_their_colour() -> None:
    shapes = {re.sub(r"M[\d.]+ [\d.]+", "", charts.marker(look, 0, 0).attributes["d"]) for look in range(8)}
    assert len(shapes) == 8
    assert len({(charts.DASHES[look % len(charts.DASHES)], look % 8) for look in range(56)}) == 56


def test_several_series_have_a_legend_and_stand_beside_each_other() -> None:
    series = [Series(name=name, look=look, points=[Point(x=1, y=0.5)]) for look, name in enumerate(("<a>", "b"))]
    drawn = drawn_by(line_chart("t", series, dodge=True))
    assert "&lt;a&gt;</li>" in drawn and drawn.count("<li>") == 2
    assert "M193.50 93.00" in drawn and "M200.50 93.00" in drawn


def test_a_break_parts_a_line_and_a_chart_without_points_is_none() -> None:
    points = [Point(x=0, y=0), None, Point(x=1, y=1)]
    drawn = drawn_by(line_chart("t", [Series(name="s", look=0, points=points)]))
    assert re.search(r'd="M[\d. ]+M[\d. ]+" class="line', drawn)
    assert line_chart("t", [Series(name="s", look=0, points=[])]) is None


def test_long_lines_are_means_of_stretches() -> None:
    points = [Point(x=i, y=10 * i) for i in range(4)]
    assert thinned([*points, None, Point(x=9, y=1)], 3) == [
        Point(x=0.5, y=5),
        Point(x=2.5, y=25),
        None,
        Point(x=9, y=1),
    ]
    assert thinned(points[:3], 3) == points[:3]
    drawn = drawn_by(line_chart("t", [Series(name="s", look=0, points=points * 9)], most=3))
    assert drawn.count('class="mark') == 3


def test_a_histogram_steps_over_its_bins() -> None:
    counts = Histogram(name="n", low=0, high=2, counts=[1, 3])
    frame = Frame((0.0, 2.0), (0.0, 100.0))  # bins 25% and 75%: heights 134.5 and 51.5
    assert outline(frame, counts) == "M46 176V134.5H197V51.5H348V176"


def test_before_and_after_are_filled_and_dashed() -> None:
    one = Histogram(name="before", low=0, high=1, counts=[2, 2])
    drawn = drawn_by(histogram_chart("t", "x", one, Histogram(name="after", low=0, high=1, counts=[4, 0])))
    assert 'class="filled"' in drawn and 'class="line c1" stroke-dasharray="6 3"' in drawn
    assert "before: 4 values" in drawn and drawn.count("<li>") == 2
    assert histogram_chart("t", "x", Histogram(name="none", low=0, high=1, counts=[0])) is None


def test_a_heat_map_has_numbers_and_leaves_what_was_not_played_empty() -> None:
    drawn = drawn_by(heat_map("t", ["base", "1", "2"], {(1, 0): 0.6, (0, 1): 0.4}, {}))
    assert "1 against base: 0.600" in drawn and ">.60</text>" in drawn and ">.40</text>" in drawn
    assert drawn.count('class="empty"') == 7 and drawn.count('class="cell') == 2
    # row 1, column 0: x = 64 + 1, y = 32 + 56 + 1; .1 from 1/2 is full colour
    assert '<rect class="cell c0" fill-opacity="0.55" x="65" y="89" width="54" height="54">' in drawn


def test_a_heat_map_marks_what_is_not_known() -> None:
    cells, ends = {(1, 0): 0.6, (2, 0): 0.6, (2, 1): 0.5}, {(1, 0): (0.5, 0.7), (2, 0): (0.501, 0.7)}
    drawn = drawn_by(heat_map("t", ["base", "1", "2"], cells, ends))
    assert "1 against base: 0.600 [0.500, 0.700]</title>" in drawn and ">~.60</text>" in drawn
    assert "2 against base: 0.600 [0.501, 0.700]</title>" in drawn and ">.60</text>" in drawn
    assert drawn.count("~") == 1 and "2 against 1: 0.500</title>" in drawn  # no interval is known there


def test_bars_are_as_long_as_their_seconds() -> None:
    drawn = drawn_by(bar_chart("t", "s", [("1", {"a": 30.0, "b": 10.0}), ("2", {"b": 20.0})], ["a", "b"]))
    # 40 s are 256 wide, so 30 s 192 (less the gap of 1), 10 s 64, 20 s 128
    assert re.findall(r'width="([\d.]+)" height="24"', drawn) == ["191", "63", "127"]
    assert ">40</text>" in drawn and "1, a: 30.0 s" in drawn
    assert bar_chart("t", "s", [("1", {})], ["a"]) is None


def test_a_whisker_reaches_from_low_to_high_and_the_axis_holds_0() -> None:
    # 0 … .2, padded to -.016 … .216, lies on 16 … 348: .1 is in the middle; a name takes 16, a whisker 15, a gap 7
    one = Whisker(name="oracle", look=0, value=0.1, low=0.05, high=0.2)
    two = Whisker(name="second", look=1, value=0.1, low=0.1, high=0.2)
    drawn = drawn_by(whisker_chart("t", "x", [("<a>", [one]), ("b", [two])]))
    zero, low, high = 16 + 0.016 / 0.232 * 332, 16 + 0.066 / 0.232 * 332, 16 + 0.216 / 0.232 * 332
    assert f'd="M{zero:.2f} 0V76" class="level"' in drawn
    assert f'd="M{low:.2f} 20.50v6m0 -3H{high:.2f}m0 -3v6" class="reach c0"' in drawn
    assert element(charts.marker(0, 182, 23.5)) in drawn and element(charts.marker(1, 182, 61.5)) in drawn
    assert "&lt;a&gt;, oracle: +0.100 [+0.050, +0.200]" in drawn and drawn.count("<li>") == 2
    assert 'viewBox="0 0 360 110"' in drawn
    below = Whisker(name="o", look=0, value=-0.1, low=-0.2, high=-0.05)
    negative = drawn_by(whisker_chart("t", "x", [("a", [below])]))
    assert f'd="M{348 - 0.016 / 0.232 * 332:.2f} 0V38" class="level"' in negative


def test_long_names_end_where_the_picture_does_and_no_difference_draws_nothing() -> None:
    none = Whisker(name="o", look=0, value=0.0, low=0.0, high=0.0)
    drawn = drawn_by(whisker_chart("t", "x", [("n" * 90, [none])]))
    assert f">{'n' * (LONGEST - 1)}…</text>" in drawn and f"<title>{'n' * 90}</title>" in drawn
    assert whisker_chart("t", "x", [("a", [])]) is None


def test_attributes() -> None:
    assert element(shape("i", class_="a", data_x=2, title="")) == '<i class="a" data-x="2"></i>'
    assert element(shape("rect", x=1.5, y=2.0, width=0.333, dash=None)) == '<rect x="1.5" y="2" width="0.33"></rect>'
