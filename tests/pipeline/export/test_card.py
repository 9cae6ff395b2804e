"""What the model card says of an evaluation, and which settings it lists."""

from __future__ import annotations

from sparring.pipeline import config
from sparring.pipeline.export.card import SETTINGS, left_out_lines
from sparring.stages.fields import identity
from tests.pipeline.export.fabricated import comparisons
from tests.pipeline.test_report import manifest


def test_the_card_says_why_prompts_are_left_out() -> None:
    rows = [{**row, "dropped": 4} for row in comparisons((0.6, 0.55, 0.65)) if row["judge"] == "second"]
    steps = {"evaluate": manifest("evaluate", {"comparisons": rows})}
    assert left_out_lines(steps)[0] == "second judge: vs previous: left out of the held-out prompts are 4"
    for opponent, trained in (("previous", 4), ("base", 3)):
        counts = {"in": 64, "out": 60 + trained, "dropped": {"no_opponent": 4 - trained}}
        steps[f"score_second_{opponent}"] = manifest("score", {"trained_on": trained}, rows=counts)
    assert left_out_lines(steps) == [
        "second judge: vs previous: left out of the held-out prompts are 4 on which it was trained",
        "second judge: vs base: left out of the held-out prompts are 3 on which it was trained, "
        "1 that the base did not answer",
    ]


def test_the_card_lists_every_setting_of_training_that_changes_the_policy() -> None:
    _, group, names = SETTINGS["train"]
    hashed = set(identity(config.load(["hardware=cpu"]).trainer))
    assert group == "trainer" and "lr" in hashed
    assert hashed - {"min_steps"} <= set(names.split())  # min_steps refuses a training, and changes none
