"""The cross-play of all policies in the terminal: for each judge who beats whom, and what kind of game that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.artifact import Manifest

NAMES = {"oracle": "oracle", "second": "second judge"}


def print_crossplay(done: Mapping[int, Mapping[str, Manifest]], console: Console) -> None:
    """Print the matrices of the latest iteration that has them; done: iteration -> label -> manifest."""
    there = [steps["crossplay"].summary for _, steps in sorted(done.items()) if "crossplay" in steps]
    for judge, game in there[-1]["judges"].items() if there else ():
        title = f"cross-play, {NAMES[judge]}: P(row beats column); ~ where the interval contains 1/2"
        console.print(title, markup=False, highlight=False)
        console.print(matrix(game))
        for line in about(game):
            console.print(line, markup=False, highlight=False)


def matrix(game: Mapping[str, Any]) -> Table:
    """Return the table of one judge."""
    n, table = len(game["win_rates"]), Table("")
    for j in range(n):
        table.add_column(f"π_{j}", justify="right")
    for i in range(n):
        table.add_row(f"π_{i}", *(cell(game, i, j) for j in range(n)))
    return table


def cell(game: Mapping[str, Any], i: int, j: int) -> str:
    """Return a win rate, marked where its interval contains 1/2; nothing where the two did not play."""
    value, low, high = (game[name][i][j] for name in ("win_rates", "low", "high"))
    if i == j or value is None:
        return "" if i != j else "·"
    return f"{'~' if low <= 0.5 <= high else ''}{value:.3f}"


def about(game: Mapping[str, Any]) -> list[str]:
    """Return whether the game is cyclic, how exploitable its policies are, and an equilibrium of the set."""
    exploited = enumerate(zip(game["exploitability"], game["exploited_by"], strict=True))
    shown = ", ".join(f"π_{i} {most:.3f} (by π_{by})" if most >= 0.0005 else f"π_{i} 0" for i, (most, by) in exploited)
    lines = [_cycle(game), f"exploitability within the set (win rate of the best answer - 1/2): {shown}"]
    if game["mixture"] is not None:
        mixture = ", ".join(f"π_{i} {x:.2f}" for i, x in enumerate(game["mixture"]) if x > 0.005)
        own, even = abs(game["mixture_exploitability"]), game["average_exploitability"]
        lines.append(f"an equilibrium of the set, by point estimates: {mixture}")
        lines.append(f"exploitability of it {own:.3f}, of the even mixture {even:.3f}")
    return lines


def _cycle(game: Mapping[str, Any]) -> str:
    for name, said in (("cycle_beyond_doubt", "every interval above 1/2"), ("cycle", "by point estimates alone")):
        found = game[name]
        if found:
            return f"cyclic, {said}: {' beats '.join(f'π_{i}' for i in [*found, found[0]])}"
    return "not cyclic: no round of policies in which each beats the next"
