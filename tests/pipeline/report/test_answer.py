"""The answer: what two intervals come to."""

from typing import Any

import pytest

from sparring.pipeline.report.answer import ALARM, Answer, answer, headline, tone
from sparring.pipeline.report.figures import WinRateSource, iteration_figures
from sparring.pipeline.report.judging import left_out
from sparring.pipeline.runs.run_history import Steps
from tests.pipeline.report.fabricated import comparison
from tests.pipeline.test_report import manifest


def evaluated(oracle: float, second: float, **summary: Any) -> Steps:
    rows = [comparison("oracle", "base", oracle), comparison("second", "base", second)]
    return {"evaluate": manifest("evaluate", {"confidence": 0.95, "comparisons": rows, "alarms": [], **summary})}


def answered(iterations: dict[int, Steps]) -> Answer:
    """The answer of a run with these manifests."""
    return answer(iterations, {t: iteration_figures(t, steps, None) for t, steps in iterations.items()})


def verdict(row: dict[str, Any]) -> str:
    """What the oracle's win rate against the base says."""
    steps = {"evaluate": manifest("evaluate", {"confidence": 0.95, "comparisons": [row], "alarms": []})}
    figure = WinRateSource(name="w", judge="oracle", opponent="base").figure(1, steps)
    assert figure is not None
    return figure.verdict


@pytest.mark.parametrize(
    ("rate", "told"), [(0.55, "better"), (0.535, "open"), (0.52, "open"), (0.48, "open"), (0.45, "worse")]
)
def test_an_interval_that_contains_one_half_says_nothing(rate: float, told: str) -> None:
    assert verdict(comparison("oracle", "base", rate)) == told
    assert verdict({**comparison("oracle", "base", rate), "win_rate": None}) == ""


def test_a_difference_below_the_detectable_one_is_no_better() -> None:
    """0.535 [0.505, 0.565]: the interval excludes 1/2, but prompts so few detect 0.043."""
    said = answered({1: evaluated(0.535, 0.535)})
    assert said.headline.startswith("Not informative") and said.tone == "open"
    assert said.sentences[0].endswith("no difference detectable, as it takes more than 0.043 on so many prompts.")


def test_both_judges_are_heard() -> None:
    assert headline("better", "better") == "Better than the base, by both judges"
    assert headline("better", "open") == "Better than the base by the oracle; the second judge cannot tell"
    assert headline("open", "open").startswith("Not informative")
    assert [tone(*two) for two in (("better", "better"), ("better", "open"), ("better", "worse"))] == [
        "good",
        "open",
        "bad",
    ]


def test_the_answer_is_of_the_last_iteration_and_names_a_better_one() -> None:
    told = answered({1: evaluated(0.56, 0.57), 2: evaluated(0.6, 0.51), 3: {}})
    assert told.iteration == 2 and told.headline == "Better than the base by the oracle; the second judge cannot tell"
    first, second, share, best = told.sentences
    assert (
        "iteration 2 beats the base with probability 0.600 [0.570, 0.630], the mean over 64 prompts: better." in first
    )
    assert "which training never saw" in second and "not informative, as the interval contains ½" in second
    assert (
        share.startswith("95%")
        and best == "By the second judge iteration 1 stands highest, by point estimates: 0.570 [0.540, 0.600]."
    )


def test_the_alarm_comes_first() -> None:
    told = answered({1: evaluated(0.6, 0.42, alarms=["base"])})
    assert told.headline == f"{ALARM}, against the base" and told.tone == "alarm"
    assert told.sentences[0] == (
        "The policy may be gaming the oracle. Better than the base by the oracle; the second judge calls it worse."
    )


def test_without_an_evaluation_nothing_is_claimed() -> None:
    assert answered({1: {}}).headline == "Not evaluated yet"


def test_a_second_judge_that_taught_the_policy_is_not_called_unseen() -> None:
    steps = evaluated(0.56, 0.57)
    for judge in ("oracle", "second"):
        steps[f"score_{judge}_base"] = manifest("score", {})
        steps[f"score_{judge}_base"].inputs["judge"] = {"name": "x", "digest": "1" * 64}
    assert "which training never saw" not in " ".join(answered({1: steps}).sentences)


@pytest.mark.parametrize(
    ("trained", "unanswered", "why"),
    [
        (3, 0, "3 on which it was trained"),
        (0, 2, "2 that the base did not answer"),
        (3, 2, "3 on which it was trained, 2 that the base did not answer"),
        (0, 0, ""),
    ],
)
def test_prompts_are_left_out_for_two_reasons(trained: int, unanswered: int, why: str) -> None:
    row = {**comparison("second", "base", 0.57), "n": 60, "dropped": trained + unanswered}
    rows = {"in": 60 + unanswered, "out": 60, "dropped": {"no_opponent": unanswered} if unanswered else {}}
    steps = evaluated(0.56, 0.5, comparisons=[row])
    steps["score_second_base"] = manifest("score", {"trained_on": trained}, rows=rows)
    said = answered({1: steps}).sentences[0]
    assert said == (
        "By the second judge, which training never saw, iteration 1 beats the base with probability "
        f"0.570 [0.540, 0.600], the mean over 60 prompts{f', with {why} left out' if why else ''}: better."
    )
    row.update(dict.fromkeys(("win_rate", "low", "high")), n=0, informative=False)
    if why:
        assert answered({1: steps}).sentences[0] == (
            f"The second judge says nothing, as no held-out prompt is left: left out are {why}."
        )
    del steps["score_second_base"]  # no longer in the store
    assert left_out(steps, row) == (str(trained + unanswered) if why else "")
