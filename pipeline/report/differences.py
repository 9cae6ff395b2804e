"""What the comparison of arms found, in rows and in sentences, and how the terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.pipeline.report.compare import Difference
from sparring.pipeline.report.judging import JUDGES
from sparring.stages.evaluate.bootstrap import POWER, Estimate
from sparring.stages.plain import printable

HEADS = ("arm", *JUDGES.values())
WORDS = {"better": "better", "worse": "worse", "none": "no difference detectable"}
REFUSED = "not compared"


def title(baseline: str) -> str:
    """Return what the comparison is called."""
    return f"Each arm against {baseline}"


def what(baseline: str) -> str:
    """Return what the figures are."""
    return (
        f"Win rate against the base minus that of {baseline}, the first arm (name another one first to compare with "
        "that), prompt by prompt on held-out prompts that both have, at the last iteration that both have evaluated."
    )


def compared(differences: Sequence[Difference]) -> list[Difference]:
    """Return those that have figures."""
    return [one for one in differences if not one.why]


def rows(differences: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Return the cells under HEADS, of the arms that some judge compares."""
    arms: dict[tuple[str, int], list[str]] = {}
    for one in differences:
        arms.setdefault((one.arm, one.iteration), []).append(cell(one))
    shown = {f"{arm}\niteration {t}": cells for (arm, t), cells in arms.items() if {*cells} != {REFUSED}}
    return [(name, *cells) for name, cells in shown.items()]


def cell(one: Difference) -> str:
    """Return what a judge finds: the difference, what it is in words, prompts and minimum detectable effect."""
    if one.why:
        return REFUSED
    figures = f"n={one.estimate.n}, detectable {one.detectable:.3f}"
    return f"{interval(one.estimate, signed=True)}\n{WORDS[one.finding]}\n{figures}"


def about(differences: Sequence[Difference]) -> list[str]:
    """Return a line for each two arms that are not compared, what should be known of the others, and the limits."""
    lines = [*_refused(differences), *dict.fromkeys(note for one in differences for note in one.notes)]
    there = compared(differences)
    return [*lines, *_limits(there)] if there else lines


def _refused(differences: Sequence[Difference]) -> list[str]:
    whys: dict[tuple[str, str, str], list[str]] = {}
    for one in differences:
        if one.why:
            whys.setdefault((one.arm, one.baseline, one.why), []).append(JUDGES[one.judge])
    return [
        f"{arm} is not compared with {baseline}{_by(judges)}: {why.removesuffix('.')}."
        for (arm, baseline, why), judges in whys.items()
    ]


def _by(judges: Sequence[str]) -> str:
    return "" if len(judges) == len(JUDGES) else f" by the {judges[0]}"


def _limits(there: Sequence[Difference]) -> list[str]:
    confidence = there[0].confidence
    lines = [
        f"{confidence:.0%} intervals over prompts. They do not hold the luck of the seed, of which each arm has one: "
        "another training of the same arm may differ by as much.",
        "n: prompts. better and worse are said of a difference whose interval excludes 0 and that is larger than the "
        f"detectable one: a true difference of that size has such an interval {POWER:.0%} of the time.",
    ]
    return lines + ([many(len(there), confidence)] if len(there) > len(JUDGES) else [])


def many(count: int, confidence: float) -> str:
    """Return how many of `count` comparisons would be found different by chance."""
    return (
        f"{count} comparisons at {confidence:.0%}: if no arm differed from any other, {count * (1 - confidence):.1f} "
        "of them would be expected to look like a difference; nothing is corrected for that."
    )


def interval(one: Estimate, signed: bool = False) -> str:
    """Return `0.540 [0.512, 0.568]`, of a difference with signs; what rounds to 0 is not negative."""
    form = "+z.3f" if signed else ".3f"
    return f"{one.mean:{form}} [{one.low:{form}}, {one.high:{form}}]" if one.n else "no prompts"


def print_differences(differences: Sequence[Difference], console: Console) -> None:
    """Print the comparison; nothing for a single arm."""
    if not differences:
        return
    baseline, there = differences[0].baseline, compared(differences)
    if there:
        heading = Text(printable(title(baseline)), style="table.title")
        table = Table(title=heading, title_justify="left", show_lines=True)
        for head in HEADS:
            table.add_column(head, overflow="fold", no_wrap=head != HEADS[0])
        for row in rows(differences):
            table.add_row(*(Text(printable(text)) for text in row))
        console.print(table)
    for line in [*([what(baseline)] if there else []), *about(differences)]:
        console.print(printable(line), markup=False, highlight=False)
