"""Self-play on finite games with the real trainer beside its theory: how far each step is from the closed form, and how
the duality gap of the average policy falls.

    .venv/bin/python -m benchmarks.game [--json FILE] [--plot FILE] [--rounds 16 64 256] [--smallest]

One prompt, 3 or 6 atomic responses, a known cyclic preference matrix; every response is dealt as often as the policy
has it and every round is trained to convergence (tests/game asserts both checks). `extremes` deals the best against
the worst response alone, as pairs are usually selected: another path, of which nothing is claimed. The numbers are
deterministic; a round takes 0.9 s of a shared core, all of it 20 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._parts import run_parts
from benchmarks._table import Row, parse, with_json
from tests.game.finite import LARGEST as ALLOWED
from tests.game.finite import Array, average, deviation, duality_gap, eta_of, gap_bound
from tests.game.games import GAMES
from tests.game.process import play

EXTREMES = {"game": "rps", "deals": "extremes"}
TITLES = {"rps": "rock-paper-scissors", "six": "six responses, random", "gated": "rock-paper-scissors, gated"}

Paths = dict[tuple[str, int], list[Array]]
"""By game (or `extremes`) and T: log pi_0 ... log pi_T."""


def rows_of(name: str, rounds: int, path: Sequence[Array]) -> list[Row]:
    """The numbers of one play; only a play of every response has aims."""
    game, case = GAMES[EXTREMES["game"] if name == "extremes" else name], f"{name}, T={rounds}"
    eta = eta_of(game.size, rounds)
    gap, last = (duality_gap(game.preference, policy) for policy in (average(path), np.exp(path[-1])))
    aims: list[tuple[str, float, int] | tuple[()]] = [(), ()]
    off, bound = deviation(game, path, rounds) / eta**3, gap_bound(game.start, eta, rounds)
    if name != "extremes":
        aims = [(f"bound {100 * bound:.1f}", gap / bound, 1), ("C = 1/16", off / ALLOWED, 1)]
    return [
        Row(case, "eta", 100 * eta, "hundredths"),
        Row(case, "gap of the average policy", 100 * gap, "hundredths", *aims[0]),
        Row(case, "gap x sqrt(T)", gap * rounds**0.5, ""),
        Row(case, "gap of the last policy", 100 * last, "hundredths"),
        Row(case, "off the closed form", 1000 * off, "eta^3/1000", *aims[1]),
    ]


def plot(paths: Paths, file: Path) -> None:
    """Gap of the running average against rounds, by game; and the policies of rock-paper-scissors in their triangle."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (*panels, triangle) = plt.subplots(1, len(GAMES) + 1, figsize=(16, 4), layout="constrained")
    for axes, name in zip(panels, GAMES, strict=True):
        for (played, rounds), path in sorted(paths.items(), key=lambda item: item[0][1]):
            if played == name:
                _gaps(axes, name, rounds, path)
        axes.set(xscale="log", yscale="log", title=TITLES[name], xlabel="rounds", ylim=(0.02, 1))
    panels[0].set_ylabel("duality gap of the average so far")
    panels[0].legend(fontsize=8)
    _triangle(triangle, paths)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _gaps(axes: Any, name: str, rounds: int, path: Sequence[Array]) -> None:
    game, counts = GAMES[name], np.arange(1, rounds + 1)
    means = np.exp(path[:-1]).cumsum(axis=0) / counts[:, None]
    (line,) = axes.plot(counts, [duality_gap(game.preference, mean) for mean in means], label=f"T = {rounds}")
    bound = gap_bound(game.start, eta_of(game.size, rounds), rounds)
    axes.plot(rounds, bound, marker="v", color=line.get_color(), label=f"its bound, {bound:.2f}")


def _triangle(axes: Any, paths: Paths) -> None:
    corners = np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])
    longest = max(rounds for name, rounds in paths if name == "rps")
    for name, label in (("rps", "every response"), ("extremes", "extremes only")):
        if (name, longest) in paths:
            policies = np.exp(paths[name, longest])
            axes.plot(*(policies @ corners).T, linewidth=0.8, label=label)
    means = np.exp(paths["rps", longest][:-1]).cumsum(axis=0) / np.arange(1, longest + 1)[:, None]
    axes.plot(*(means @ corners).T, linewidth=1.6, label="average of every response")
    axes.plot(*corners[[0, 1, 2, 0]].T, color="grey", linewidth=0.6)
    for corner, name in zip(corners, ("rock", "paper", "scissors"), strict=True):
        axes.annotate(name, corner)
    axes.set(title=f"policies, T = {longest}", aspect="equal")
    axes.axis("off")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, -0.2))


def main() -> int:
    """Play, draw and report; return 1 when that fails."""
    parser = with_json(__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figure there (png, svg, pdf)")
    parser.add_argument("--rounds", type=int, nargs="+", default=[16, 64, 256], metavar="T")
    arguments = parse(parser, {"rounds": [8]})
    return run_parts("self-play on finite games", {"games": partial(_games, arguments)}, arguments.json)


def _games(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    plays = {(name, rounds): {"game": name, "rounds": rounds} for name in GAMES for rounds in arguments.rounds}
    plays |= {("extremes", rounds): {**EXTREMES, "rounds": rounds} for rounds in arguments.rounds}
    found = play(list(plays.values()), folder)
    paths = {key: one.policies for key, one in zip(plays, found, strict=True)}
    if arguments.plot:
        plot(paths, arguments.plot)
    return [row for (name, rounds), path in paths.items() for row in rows_of(name, rounds, path)]


if __name__ == "__main__":
    sys.exit(main())
