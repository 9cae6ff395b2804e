"""Who beats whom, on the page: a heat map for each judge, what kind of game that is, and every interval."""

from __future__ import annotations

from collections.abc import Mapping

from sparring.pipeline.report.crossplay import Game, about
from sparring.pipeline.report.html.blocks import heat
from sparring.pipeline.report.html.crossplay import Cells
from sparring.pipeline.report.html.curves import charts
from sparring.pipeline.report.html.gather import Story
from sparring.pipeline.report.html.markup import Html, join, table, tag
from sparring.pipeline.report.judging import JUDGES

Ends = Mapping[tuple[int, int], tuple[float, float]]
"""(policy, other policy) -> interval of its win rate."""


def games(story: Story) -> Html:
    """Return what each judge says of all policies that have met; '' without any."""
    judges = [judge for judge in JUDGES if story.crossplay.get(judge) or judge in story.games]
    drawn = [_judge(judge, story.crossplay.get(judge, {}), story.games.get(judge)) for judge in judges]
    if not story.games:
        return charts(drawn)
    return join([tag("p", _read(story), class_="quiet"), charts(drawn), _intervals(story.games)])


def named(policy: int) -> str:
    """Return `base`, or `iter 2`."""
    return f"iter {policy}" if policy else "base"


def _read(story: Story) -> str:
    last = max(len(game["win_rates"]) for game in story.games.values()) - 1
    played = max((i for cells in story.crossplay.values() for i, _ in cells), default=last)
    upto = f" What stands below the maps is of the policies up to iteration {last}." if last < played else ""
    return f"~ stands where the interval contains ½: who is better is not known.{upto}"


def _judge(judge: str, scored: Cells, game: Game | None) -> Html:
    ends = intervals(game) if game else {}
    cells = {**scored, **{(i, j): game["win_rates"][i][j] for i, j in ends}} if game else scored
    order = sorted({i for pair in cells for i in pair})
    places = {policy: place for place, policy in enumerate(order)}
    drawn = heat(
        f"Row beats column, {JUDGES[judge]}",
        [named(i) for i in order],
        {(places[i], places[j]): value for (i, j), value in cells.items()},
        {(places[i], places[j]): pair for (i, j), pair in ends.items()},
    )
    lines = about(game, lambda i: named(i).replace(" ", "\u00a0")) if game else []
    said = tag("ul", *(tag("li", line[0].upper() + line[1:]) for line in lines), class_="quiet")
    return tag("div", drawn, said) if lines else drawn


def intervals(game: Game) -> Ends:
    """Return the intervals of those that played each other."""
    n = len(game["win_rates"])
    return {
        (i, j): (game["low"][i][j], game["high"][i][j])
        for i in range(n)
        for j in range(n)
        if i != j and game["win_rates"][i][j] is not None
    }


def _intervals(found: Mapping[str, Game]) -> Html:
    """Return every win rate with its interval, the later policy first."""
    pairs = sorted({(i, j) for game in found.values() for i, j in intervals(game) if i > j})
    rows = [[f"{named(i)} against {named(j)}", *(_rate(game, i, j) for game in found.values())] for i, j in pairs]
    shown = table(("", *(JUDGES[judge] for judge in found)), rows, "numbers")
    return tag("details", tag("summary", "Every win rate with its interval"), shown)


def _rate(game: Game, i: int, j: int) -> str:
    if (i, j) not in intervals(game):
        return ""
    value, low, high = (game[key][i][j] for key in ("win_rates", "low", "high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
