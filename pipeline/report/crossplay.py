"""The cross-play of all policies: for each judge who beats whom, and what kind of game that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from sparring.pipeline.report.judging import JUDGES
from sparring.pipeline.store.manifest import Manifest

Game = Mapping[str, Any]
"""What the step `crossplay` says of one judge: win_rates, low, high, cycle, exploitability, mixture …"""


def print_crossplay(done: Mapping[int, Mapping[str, Manifest]], console: Console) -> None:
    """Print the matrices of the latest iteration that has them; done: iteration -> label -> manifest."""
    for judge, game in games(done).items():
        title = f"cross-play, {JUDGES[judge]}: P(row beats column); ~ where the interval contains 1/2"
        console.print(title, markup=False, highlight=False)
        console.print(matrix(game))
        for line in about(game):
            console.print(line, markup=False, highlight=False)


def games(done: Mapping[int, Mapping[str, Manifest]]) -> Mapping[str, Game]:
    """Return judge -> game of the latest iteration that has them, {} without any."""
    there = [steps["crossplay"].summary for _, steps in sorted(done.items()) if "crossplay" in steps]
    return there[-1]["judges"] if there else {}


def matrix(game: Game) -> Table:
    """Return the table of one judge."""
    n, table = len(game["win_rates"]), Table("")
    for j in range(n):
        table.add_column(f"π_{j}", justify="right")
    for i in range(n):
        table.add_row(f"π_{i}", *(cell(game, i, j) for j in range(n)))
    return table


def cell(game: Game, i: int, j: int) -> str:
    """Return a win rate, marked where its interval contains 1/2; nothing where the two did not play."""
    value, low, high = (game[name][i][j] for name in ("win_rates", "low", "high"))
    if i == j or value is None:
        return "" if i != j else "·"
    return f"{'~' if low <= 0.5 <= high else ''}{value:.3f}"


def numbered(i: int) -> str:
    """Return the name of a policy: π_0 is the base."""
    return f"π_{i}"


def about(game: Game, named: Callable[[int], str] = numbered) -> list[str]:
    """Return whether the game is cyclic, how exploitable its policies are, and an equilibrium of the set."""
    exploited = [
        f"{named(i)}: {most:.3f} (by {named(by)})" if most >= 0.0005 else f"{named(i)}: 0"
        for i, (most, by) in enumerate(zip(game["exploitability"], game["exploited_by"], strict=True))
    ]
    shown = ", ".join(exploited)
    lines = [
        _cycle(game, named),
        f"exploitability within the set, by point estimates (win rate of the best answer - 1/2): {shown}",
    ]
    if game["mixture"] is not None:
        mixture = ", ".join(f"{named(i)}: {x:.2f}" for i, x in enumerate(game["mixture"]) if x > 0.005)
        own, even = abs(game["mixture_exploitability"]), game["average_exploitability"]
        lines.append(f"an equilibrium of the set, by point estimates: {mixture}")
        lines.append(f"exploitability of it {own:.3f}, of the even mixture {even:.3f}")
    return lines


def _cycle(game: Game, named: Callable[[int], str]) -> str:
    for name, said in (("cycle_beyond_doubt", "every interval above 1/2"), ("cycle", "by point estimates alone")):
        found = game[name]
        if found:
            return f"cyclic, {said}: {' beats '.join(named(i) for i in [*found, found[0]])}"
    return "not cyclic by point estimates: no round of policies in which each beats the next"


def flat(game: Game) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a game under names of their own: `3_vs_1/win_rate`, `exploitability/3`, `cyclic`."""
    cells: dict[str, list[list[float | None]]] = {key: game[key] for key in ("win_rates", "low", "high")}
    for key, rows in cells.items():
        for i, row in enumerate(rows):
            yield from ((f"{i}_vs_{j}/{key.removesuffix('s')}", x) for j, x in enumerate(row[:i]) if x is not None)
    yield "cyclic", float(bool(game["cycle"]))
    yield "cyclic_beyond_doubt", float(bool(game["cycle_beyond_doubt"]))
    for key in ("exploitability", "mixture"):
        yield from ((f"{key}/{i}", x) for i, x in enumerate(game[key] or ()))
    for key in ("average_exploitability", "mixture_exploitability", "duality_gap"):
        if game[key] is not None:
            yield key, game[key]
