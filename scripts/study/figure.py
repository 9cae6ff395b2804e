"""The figure of a study: a panel for each judge and for length, diversity and training; a line for each arm.

Arms differ by marker and line style as well as by colour (Okabe and Ito's, which most eyes tell apart).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.study.compare import ArmsAtIteration
from sparring.pipeline.report.judging import JUDGES

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
DODGE = 0.05
"""Between arms, in iterations, so that intervals do not cover each other."""
PANELS = (
    "response tokens, mean",
    "distinct-2 in a response",
    "distinct-2 over K, in play",
    "h chosen, after",
    "h rejected, after",
    "in band, output head",
)
WIDTH = 3


def draw(
    path: Path,
    compared: Sequence[ArmsAtIteration],
    figures: Mapping[tuple[str, int], Mapping[str, float]],
    base: Mapping[str, float],
    title: str,
) -> None:
    """Write the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(arm for one in compared for arm in one.arms))
    panels = [*JUDGES, *(name for name in PANELS if any(name in one for one in figures.values()))]
    height = -(-(len(panels) + 1) // WIDTH)
    figure = Figure(figsize=(4.4 * WIDTH, 3.4 * height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(height, WIDTH, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        if panel in JUDGES:
            _judge(axis, panel, [one for one in compared if one.judge == panel], arms)
        else:
            _number(axis, panel, figures, arms, base.get(panel))
        axis.set_xticks(sorted({one.iteration for one in compared}))
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[len(panels)].legend(handles, labels, loc="center", frameon=False)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    figure.suptitle(f"{title}: means over seeds, intervals over prompts; grey: the base")
    figure.savefig(path, dpi=130)


def style(arm: int) -> dict[str, Any]:
    """Return how the arm of this number is drawn: no two of the first fifty-six alike."""
    return {
        "color": COLOURS[arm % len(COLOURS)],
        "marker": MARKERS[arm % len(MARKERS)],
        "linestyle": LINES[arm % len(LINES)],
        "markersize": 5,
        "linewidth": 1.4,
    }


def _place(t: int, arm: int, arms: int) -> float:
    return t + (arm - (arms - 1) / 2) * DODGE


def _judge(axis: Any, judge: str, compared: Sequence[ArmsAtIteration], arms: Sequence[str]) -> None:
    axis.axhline(0.5, color="grey", linewidth=0.8)
    for number, arm in enumerate(arms):
        points = [(one.iteration, one.arms[arm]) for one in compared if arm in one.arms and one.arms[arm].n]
        xs = [_place(t, number, len(arms)) for t, _ in points]
        reach = [[e.mean - e.low for _, e in points], [e.high - e.mean for _, e in points]]
        axis.errorbar(xs, [e.mean for _, e in points], yerr=reach, label=arm, capsize=2, **style(number))
    axis.set_title(f"win rate against the base, {JUDGES[judge]}", fontsize=10)


def _number(
    axis: Any,
    name: str,
    figures: Mapping[tuple[str, int], Mapping[str, float]],
    arms: Sequence[str],
    base: float | None,
) -> None:
    if base is not None:
        axis.axhline(base, color="grey", linewidth=0.8)
    for number, arm in enumerate(arms):
        points = sorted((t, one[name]) for (a, t), one in figures.items() if a == arm and name in one)
        axis.plot([_place(t, number, len(arms)) for t, _ in points], [y for _, y in points], **style(number))
    axis.set_title(name, fontsize=10)
