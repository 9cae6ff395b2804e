"""Which iteration is taken: by the second judge against the base, never silently the last."""

from __future__ import annotations

import re

import pytest

from sparring.pipeline.export.choose import choose
from sparring.pipeline.report.data import ArmReport
from sparring.pipeline.runs.run_history import Steps
from sparring.stages.errors import DataError
from tests.pipeline.export.fabricated import Rate, comparisons
from tests.pipeline.report.fabricated import history_of
from tests.pipeline.test_report import manifest
from tests.refusals import refused

GOOD, BETTER, LAST = (0.55, 0.52, 0.58), (0.62, 0.60, 0.64), (0.53, 0.51, 0.55)
TRAINED = {"train": manifest("train", {})}


def arm(*rates: Rate | str) -> ArmReport:
    """Iterations 1, 2, …: a rate of the second judge; "trained": without an evaluation; "sampled": not trained."""
    found: dict[int, Steps] = {}
    for t, rate in enumerate(rates, start=1):
        found[t] = {"sample": manifest("sample", {}), **({} if rate == "sampled" else TRAINED)}
        if not isinstance(rate, str):
            found[t]["evaluate"] = manifest("evaluate", {"comparisons": comparisons(rate), "alarms": []})
    return ArmReport.of(history_of(found))


def test_the_best_by_the_second_judge_not_the_last_and_not_the_oracles() -> None:
    choice = choose(arm(GOOD, BETTER, LAST), None)
    assert choice.iteration == 2
    assert choice.why == (
        "iteration 2, the best of 1, 2, 3 by the second judge against the base: 0.620 [0.600, 0.640]",
    )


def test_intervals_that_overlap_are_named() -> None:
    choice = choose(arm(GOOD, (0.56, 0.53, 0.59)), None)
    assert choice.iteration == 2 and "overlaps with those of 1 with 0.550 [0.520, 0.580]" in choice.why[-1]


def test_a_tie_takes_the_earliest_and_says_so() -> None:
    choice = choose(arm(LAST, BETTER, (0.62 + 1e-12, 0.60, 0.64)), None)
    assert choice.iteration == 2 and "a tie with 3" in choice.why[1] and len(choice.why) == 2


@pytest.mark.parametrize(
    ("rate", "text"),
    [((0.51, 0.48, 0.54), "not informative: the interval contains 1/2"), ((0.4, 0.35, 0.45), "WARNING.*worse than")],
)
def test_a_best_that_is_no_better_than_the_base_says_so(rate: Rate, text: str) -> None:
    choice = choose(arm(rate, "sampled"), None)
    assert choice.iteration == 1 and "the only one that is evaluated" in choice.why[0]
    (said,) = choice.why[1:]
    assert re.search(text, said)


def test_iterations_without_an_evaluation_are_named() -> None:
    choice = choose(arm(GOOD, "trained", None), None)
    assert choice.iteration == 1 and choice.why[-1].endswith("left out: 2, 3")


def test_the_one_asked_for_is_taken_and_a_better_one_named() -> None:
    choice = choose(arm(GOOD, BETTER, "trained"), 1)
    assert choice.iteration == 1 and choice.why[0].startswith("iteration 1, as asked for;")
    assert (
        choice.why[1]
        == "by the second judge these have a higher win rate, by point estimates: 2 with 0.620 [0.600, 0.640]"
    )
    assert "has not compared" in choose(arm(GOOD, BETTER, "trained"), 3).why[0]


REFUSED = [
    (("sampled",), None, ("mine", "trained")),
    ((GOOD, "sampled"), 2, ("--iter 2: ", "run mine", ": 1")),
    (("trained", None), None, ("(1, 2)", "--iter 1")),
]


@pytest.mark.parametrize(("rates", "wanted", "names"), REFUSED)
def test_what_cannot_be_chosen(rates: tuple[Rate | str, ...], wanted: int | None, names: tuple[str, ...]) -> None:
    with refused(DataError, names):
        choose(arm(*rates), wanted)
