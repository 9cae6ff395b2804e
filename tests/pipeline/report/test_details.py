"""What the report reads from artifacts, counted by hand."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sparring.pipeline.report import prompts
from sparring.pipeline.report.crossplay import opponent, scored
from sparring.pipeline.report.data import ReportData
from sparring.pipeline.report.details import details_of
from sparring.pipeline.report.prompts import choose, shown_prompts
from sparring.pipeline.report.spread import Histogram, counts_of, spread
from sparring.pipeline.runs.run_history import RunHistory, open_arms
from tests.pipeline.report.fabricated import Played, Run, duel, scores_table


def filled(counts: Histogram | None) -> dict[int, int]:
    """bin -> count of those that are not empty."""
    assert counts is not None
    return {i: count for i, count in enumerate(counts.counts) if count}


def arm_of(run: Run) -> RunHistory:
    (arm,) = open_arms(run.root / "runs", [run.name])
    return arm


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path).begin()
    first = {"p1": duel("One?", "yes", "no", 0.81), "p2": duel("Two?", "yes", "no", 0.61)}
    made.annotated(1, [first, {"p3": duel("Three?", "yes", "yes", 0.5)}])
    return made


def test_histograms_of_two_prompts_in_two_parts(run: Run) -> None:
    arm = arm_of(run)
    found = details_of([arm])[0].spreads[1]
    # p = (1/2 + P)/2: .655 .345 and .555 .445, in bins of .05; |P - 1/2| = .31 and .11, in bins of .025
    assert filled(found.rates) == {13: 1, 6: 1, 11: 1, 8: 1}
    assert filled(found.before) == {12: 1, 4: 1}
    assert filled(found.after) == {6: 1, 2: 1}  # the gate of 1/2 leaves .155 and .055
    pairs = arm.artifact(1, "pairs")
    assert pairs and spread(pairs, None, "").after is None


def test_values_at_the_ends_are_counted_and_those_that_are_not_there_are_not() -> None:
    counts = counts_of(np.array([0.0, 1.0, 1.0 + 1e-12, np.nan]), 0.0, 1.0)
    assert filled(Histogram(name="t", low=0.0, high=1.0, counts=counts.tolist())) == {0: 1, 19: 2}


def test_a_prompt_without_a_pair_says_why(run: Run) -> None:
    chosen = shown_prompts(arm_of(run), 1)
    assert chosen and chosen.of == 3
    by_id = {prompt.id: prompt for prompt in chosen.prompts}
    assert [by_id[name].outcome for name in ("p1", "p2", "p3")] == ["pair", "pair", "tie"]
    one = by_id["p1"]
    assert one.gated is not None and one.gated[0, 1] == pytest.approx(0.655)
    assert one.pairs[0]["target_w"] == pytest.approx(0.5775) and by_id["p3"].p is not None


def test_the_widest_and_some_drawn_by_their_ids_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "WIDEST", 2)
    monkeypatch.setattr(prompts, "DRAWN", 3)
    made = Run(tmp_path).begin()
    strength = {"a": 0.6, "b": 0.9, "c": 0.55, "d": 0.2, "e": 0.7, "f": 0.65, "g": 0.58, "h": 0.62}
    every = [{name: duel("?", "x", "y", p)} for name, p in strength.items()]
    made.annotated(1, every)
    arm = arm_of(made)
    samples, pairs = arm.artifact(1, "sample"), arm.artifact(1, "pairs")
    assert samples
    places, n = choose(samples, pairs)
    assert n == 8 and places[:2] == [(1, "b"), (3, "d")] and len(set(places)) == 5
    assert choose(samples, pairs) == (places, n)
    assert [prompt.id for prompt in shown_prompts(arm, 1).prompts] == [name for _, name in places]


def test_memory_grows_with_a_part_not_with_the_parts(tmp_path: Path) -> None:
    def peak(parts: int) -> int:
        made = Run(tmp_path / str(parts), "r").begin()
        p = np.full((4, 4), 0.6)
        p[np.tril_indices(4)] = 0.4
        np.fill_diagonal(p, 0.5)
        made.annotated(1, [{f"{i}-{j}": Played("?", "abcd", p) for j in range(100)} for i in range(parts)])
        pairs, targets = (arm_of(made).artifact(1, label) for label in ("pairs", "calibrate"))
        assert pairs
        spread(pairs, targets, "pairwise")  # files are verified when they are first read
        tracemalloc.start()
        spread(pairs, targets, "pairwise")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(12) < 1.2 * peak(3)  # it would be four times as much


def test_cross_play_is_the_mean_over_prompts_and_its_mirror(tmp_path: Path) -> None:
    made = Run(tmp_path).begin()
    made.add(1, "score_oracle_base", [scores_table([0.6, 0.8]), scores_table([0.4])])
    made.add(2, "score_oracle_previous", [scores_table([0.7])])
    made.add(3, "score_second_1", [scores_table([0.2])])
    found = scored(arm_of(made))
    assert found["oracle"] == pytest.approx({(1, 0): 0.6, (0, 1): 0.4, (2, 1): 0.7, (1, 2): 0.3})
    assert found["second"] == pytest.approx({(3, 1): 0.2, (1, 3): 0.8})


def test_labels_name_the_opponent() -> None:
    assert opponent("score_oracle_base", "oracle", 3) == 0 and opponent("score_oracle_previous", "oracle", 3) == 2
    assert opponent("score_oracle_vs12", "oracle", 14) == 12
    assert opponent("score", "oracle", 3) is None and opponent("score_second_base", "oracle", 3) is None
    assert opponent("score_oracle_best", "oracle", 3) is None


def test_records_of_training_without_the_probe(run: Run) -> None:
    run.trained(1, 5)
    records = details_of([arm_of(run)])[0].records[1]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5] and records[0]["h_l"] == -0.2


def test_what_arms_share_is_read_once(tmp_path: Path) -> None:
    first = Run(tmp_path, "m/gate=off").begin()
    first.annotated(1, [{"p": duel("?", "x", "y", 0.7)}])
    second = Run(tmp_path, "m/gate=on").begin()
    (second.folder / "run.json").write_text((first.folder / "run.json").read_text())
    arms = open_arms(tmp_path / "runs", ["m"])
    one, two = details_of(arms)
    assert ReportData.of(arms).arms[0].label == "gate=off" and one.prompts[1] is two.prompts[1]
