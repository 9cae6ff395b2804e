"""The collapse panel in words: every figure of pipeline/diagnostics/panel.py, in groups, by iteration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from sparring.pipeline.diagnostics.panel import Panel
from sparring.pipeline.report.judging import JUDGES

SPEECH = {
    "length_mean": "tokens, mean",
    "length_p95": "tokens, p95",
    "cap_rate": "cut at sampler.max_tokens",
    "end_of_turn_rate": "ended by themselves",
    "distinct_2": "distinct-2 (different / all pairs of tokens)",
}
OPPONENTS = {"previous": "the policy before", "base": "the base"}
GROUPS: Mapping[str, Mapping[str, str]] = {
    "responses trained on, by the policy before": {
        **{f"played_{name}": words for name, words in SPEECH.items()},
        "played_unique_rate": "different texts of K",
        "similarity": "similarity of two of K, mean",
    },
    "held-out responses": {
        **{f"heldout_{name}": words for name, words in SPEECH.items()},
        "kl_previous": "KL to the policy before, an estimate: may be negative",
        "kl_base": "KL to the base, an estimate: may be negative",
        "log_ratio_previous": "log-ratio to the policy before, mean under the sampling distribution: no KL",
        "log_ratio_base": "log-ratio to the base, mean under the sampling distribution: no KL",
    },
    "held-out responses of the base": {f"base_{name}": words for name, words in SPEECH.items()},
    "judgement": {
        "ties": "the oracle has no preference",
        "position_disagreement": "its winner changes with the order",
        "cycle_rate": "triples that beat each other in a circle, by the sign of P alone",
        "length_correlation": "win rate ~ length, correlation",
        "shift": "|P̃−P| by the gate, mean",
        "flips": "pairs turned by the gate",
    },
    "held-out win rates": {
        f"{judge}_{opponent}": f"{who}, against {whom}"
        for judge, who in JUDGES.items()
        for opponent, whom in OPPONENTS.items()
    },
    "training; late: mean over the second half of the steps, each of its own batch before the step": {
        "z_w": "log-prob z of chosen, late",
        "z_l": "log-prob z of rejected, late",
        "h_w": "h of chosen: change of z, late",
        "h_l": "h of rejected, late",
        "h_w_negative": "chosen that lost probability, late",
        "kl_of_pairs": "−h of chosen and rejected, mean, late",
        "probe_h_w": "h of chosen after training ({pairs})",
        "probe_h_l": "h of rejected after training ({pairs})",
        "probe_pairs": "pairs that h after training is of, drawn by seed",
        "noise": "|h| before training: noise (8 pairs at most)",
        "changed_fraction": "parameters changed, by any amount",
        "saturation": "saturation of the last batch: 0 unmoved, 1 at the target",
        "clipped_share": "steps clipped",
    },
    "band, measured on the output head at some steps": {
        "rho": "ρ: cosine of both gradients of the head",
        "r_star": "r*: norm of the head's gradient, rejected / chosen",
        "in_band": "pairs in the band, measured on the output head",
        "rho_negative": "pairs with ρ ≤ 0 there: any ratio keeps the winner up",
        "reversed": "pairs reversed: the objective lowers the winner or raises the loser",
    },
    "states of pairs that no training has seen": {
        "distance_new": "‖u_w−u_l‖ of the first batch, before training",
    },
}
"""Title -> name of a figure -> what it is."""
KNOWN = {name for names in GROUPS.values() for name in names}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure in all iterations."""

    name: str
    words: str
    cells: Sequence[str]
    """'' in an iteration that does not have it."""


def groups(panels: Sequence[Panel]) -> Iterator[tuple[str, list[Row]]]:
    """Yield title and rows of each group that has any; what GROUPS does not know comes last, under its name."""
    there = dict.fromkeys(name for panel in panels for name in panel.figures if _stem(name, panel) == name)
    others = {name: "" for name in there if name not in KNOWN}
    counted = pairs_of(panels)
    for title, names in {**GROUPS, "others": others}.items():
        rows = [
            Row(
                name=name,
                words=words.replace("{pairs}", counted),
                cells=[cell(panel, name) for panel in panels],
            )
            for name, words in names.items()
            if name in there
        ]
        if rows:
            yield title, rows


def pairs_of(panels: Sequence[Panel]) -> str:
    """Return how many training pairs h after training is of: `64 pairs`, `64, 40 pairs` of two iterations."""
    counts = (panel.get("probe_pairs") if "probe_h_w" in panel.figures else 0 for panel in panels)
    known = dict.fromkeys(BEFORE if count is None else f"{count:.0f}" for count in counts if count != 0)
    return f"{', '.join(known)} pairs"


BEFORE = "the first batch's 8 shortest"
"""What h after training was of before the pairs were drawn: such artifacts do not state their count."""


def _stem(name: str, panel: Panel) -> str:
    """Return the figure whose interval `name` is an end of, or `name` itself."""
    stem = name.removesuffix("_low").removesuffix("_high")
    return stem if stem in panel.figures else name


def cell(panel: Panel, name: str) -> str:
    """Return a figure as it is shown, with its interval where it has one."""
    ends = [panel.figures.get(one) for one in (name, f"{name}_low", f"{name}_high")]
    value, low, high = ("" if one is None else one.text for one in ends)
    return f"{value} [{low}, {high}]" if value and low and high else value


def print_panel(panels: Sequence[Panel], console: Console) -> None:
    """Print the panel as a table with a section for each group."""
    found = list(groups(panels))
    if not found:
        return
    table = Table("collapse panel", "", *(str(panel.iteration) for panel in panels))
    for column in table.columns[2:]:
        column.justify = "right"
    for title, rows in found:
        table.add_row("", title, style="bold")
        for row in rows:
            table.add_row(row.name, row.words, *row.cells)
        table.add_section()
    console.print(table)
