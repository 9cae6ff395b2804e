"""What judges are worth: their own accuracy, and an error correlation only where it is that of these two."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.report.judging import apart, worth_of_judges
from pipeline.report.table import Steps
from pipeline.sources import EMBEDDED_JUDGES
from stages.annotate.score import _card
from tests.pipeline.test_report import manifest


def judged(**kinds: str) -> Steps:
    """Held-out scores by judges of these kinds, with the cards of those that are embedded."""
    steps = {}
    for judge, kind in kinds.items():
        summary: dict[str, Any] = {"oracle": kind, "card": _card(EMBEDDED_JUDGES / kind)}
        steps[f"score_{judge}_base"] = manifest("score", summary)
    return steps


@pytest.mark.parametrize(("oracle", "second"), [("mini", "lexical"), ("lexical", "mini")])
def test_the_embedded_judges_err_together_as_their_cards_say(oracle: str, second: str) -> None:
    accuracies = {
        "mini": "accuracy 0.605 [0.553, 0.649], length-matched 0.600 [0.518, 0.684]",
        "lexical": "accuracy 0.613 [0.565, 0.658], length-matched 0.526 [0.440, 0.611]",
    }
    assert worth_of_judges(judged(oracle=oracle, second=second)) == [
        f"oracle ({oracle}): {accuracies[oracle]}",
        f"second judge ({second}): {accuracies[second]}",
        "the two judges err together: error correlation 0.302 [0.218, 0.372]",
    ]


def test_an_error_correlation_with_another_judge_is_not_said() -> None:
    """lexical's card says how it errs with mini, not with PairRM."""
    oracle, second = worth_of_judges(judged(oracle="pairrm", second="lexical"))
    assert oracle == (
        "oracle (pairrm): accuracy not measured; `sparring oracle check FILE oracle=pairrm` does, on labelled pairs"
    )
    assert second.startswith("second judge (lexical): accuracy 0.613") and "correlation" not in second
    _, unmeasured = worth_of_judges(judged(oracle="mini", second="llm"))
    assert "`sparring oracle check FILE --judge judge=llm`" in unmeasured
    retrained = judged(oracle="mini", second="lexical")
    retrained["score_oracle_base"].summary["card"]["error_phi"] += 1e-6
    assert len(worth_of_judges(retrained)) == 2


def test_what_was_not_judged_has_no_line() -> None:
    assert worth_of_judges({}) == [] and len(worth_of_judges(judged(oracle="mini"))) == 1


def test_a_second_judge_that_is_the_oracle_is_said() -> None:
    """Of runs that were made before a plan refused it: told by what both were loaded from."""
    of = {"judge": {"name": "x", "digest": "1" * 64}, "encoder": {"name": "e", "digest": "2" * 64}}
    members = {"a.judge": of["judge"], "b.judge": {"name": "y", "digest": "3" * 64}}
    alone = {"judge": {"name": "y", "digest": "4" * 64}, "encoder": of["encoder"]}
    for inputs, other in ((of, of), (members, of), (of, members), (of, alone), (members, alone)):
        steps = judged(oracle="mini", second="mini")
        for manifest_, read in zip(steps.values(), (inputs, other), strict=True):
            manifest_.inputs.update(read)
        said = any("is the oracle, or a part of it" in line for line in worth_of_judges(steps))
        assert (apart(steps), said) == ((True, False) if other is alone else (False, True))
