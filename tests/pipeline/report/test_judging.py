"""What judges are worth: their own accuracy, and an error correlation only where it is that of these two."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sparring.pipeline.report.judging import accuracy_of, are_independent, worth_of_judges
from sparring.pipeline.runs.run_history import Steps
from sparring.pipeline.sources import EMBEDDED_JUDGES
from sparring.stages.annotate.score import _card
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
    one, two, three, four, together = worth_of_judges(judged(oracle=oracle, second=second))
    for kind, said, by_source, seat in ((oracle, one, two, "oracle"), (second, three, four, "second judge")):
        card = json.loads((EMBEDDED_JUDGES / kind / "card.json").read_text())
        macro = f"{card['macro']:.3f} [{card['macro_low']:.3f}, {card['macro_high']:.3f}]"
        assert said.startswith(f"{seat} ({kind}): accuracy {macro}, the mean over {len(card['sources'])} sources")
        assert "of sources like those it was trained on ('shorter wins' 0." in said and "'longer wins' 0." in said
        assert f"length-matched {card['length_matched']:.3f} [" in said
        for name in card["few_prompts"]:
            assert f"without {name}" in said and f"of all pairs {card['accuracy_many_prompts']:.3f} [" in said
        listed = ", ".join(
            f"{name} {own['accuracy']:.3f} of {own['pairs']} pairs" for name, own in card["sources"].items()
        )
        assert by_source == f"{seat} ({kind}), by source: {listed}"
    card = json.loads((EMBEDDED_JUDGES / oracle / "card.json").read_text())
    phi = f"{card['error_phi']:.3f} [{card['error_phi_low']:.3f}, {card['error_phi_high']:.3f}]"
    assert together == f"the judges' mistakes correlate: {phi}"


def test_a_card_of_another_make_is_said_to_be_of_all_its_pairs() -> None:
    figures = {"accuracy": 0.6, "accuracy_low": 0.55, "accuracy_high": 0.65}
    assert list(accuracy_of(figures)) == ["accuracy of all its test pairs 0.600 [0.550, 0.650]"]


def test_an_error_correlation_with_another_judge_is_not_said() -> None:
    """lexical's card says how it errs with mini, not with PairRM."""
    oracle, second, by_source = worth_of_judges(judged(oracle="pairrm", second="lexical"))
    assert oracle == (
        "oracle (pairrm): accuracy not measured; `sparring oracle check FILE oracle=pairrm` does, on labelled pairs"
    )
    assert second.startswith("second judge (lexical): accuracy ") and "correlation" not in second + by_source
    *_, unmeasured = worth_of_judges(judged(oracle="mini", second="llm"))
    assert "`sparring oracle check FILE --judge judge=llm`" in unmeasured
    retrained = judged(oracle="mini", second="lexical")
    retrained["score_oracle_base"].summary["card"]["error_phi"] += 1e-6
    assert len(worth_of_judges(retrained)) == 4


def test_what_was_not_judged_has_no_line() -> None:
    assert worth_of_judges({}) == [] and len(worth_of_judges(judged(oracle="mini"))) == 2


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
        assert (are_independent(steps), said) == ((True, False) if other is alone else (False, True))
