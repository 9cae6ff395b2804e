"""Arms against each other on made-up held-out scores: figures worked by hand, and why others are not compared."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparring.pipeline.cli import main
from sparring.pipeline.report.comparison import Comparison, compare, remarks, rows, why_not
from sparring.pipeline.report.terminal import print_comparisons
from sparring.pipeline.runs.run_history import open_arms
from sparring.stages.errors import DataError
from tests.pipeline.report.fabricated import JUDGES, Run, judge, page_of

OFF = {"x": 0.5, "y": 0.6, "z": 0.7, "only off": 0.99}
ON = {"x": 0.6, "y": 0.7, "z": 0.9, "only on": 0.01}
"""By the oracle: differences .1, .1, .2."""
OFF_2, ON_2 = {"x": 0.5, "y": 0.6, "z": 0.7}, {"x": 0.6, "y": 0.5, "z": 0.7}
"""By the second judge: .1, -.1, 0."""


def run(root: Path, name: str, base: Mapping[str, Any] | None = None, **more: Any) -> Run:
    """An arm of m with one evaluated iteration; base: of the base's responses; more: of the evaluation."""
    made = Run(root, f"m/gate={name}").begin().based(**(base or {}))
    rates = (OFF, OFF_2) if name == "off" else (ON, ON_2)
    made.evaluated(1, *rates, **more)
    return made


def against_off(root: Path, *others: str) -> list[Comparison]:
    return compare(open_arms(root / "runs", ["m/gate=off", *(others or ("m/gate=on",))]))


def test_differences_by_hand(tmp_path: Path) -> None:
    run(tmp_path, "off"), run(tmp_path, "on")
    oracle, second = against_off(tmp_path)
    assert (oracle.arm, oracle.baseline, oracle.judge, oracle.iteration) == ("m/gate=on", "m/gate=off", "oracle", 1)
    assert oracle.estimate.n == 3 and oracle.estimate.mean == pytest.approx(0.4 / 3)
    # of 27 draws of three prompts one is z alone, .2, and eight are x and y alone, .1: the 2.5% and 97.5% quantiles
    assert (oracle.estimate.low, oracle.estimate.high) == pytest.approx((0.1, 0.2))
    assert oracle.detectable == pytest.approx((1.959964 + 0.841621) / 30, rel=1e-6)  # s^2 = 1/300, s / sqrt(3) = 1/30
    assert oracle.finding == "better" and oracle.confidence == 0.95 and not oracle.why and not oracle.notes
    assert second.judge == "second" and second.estimate.mean == pytest.approx(0.0, abs=1e-12)
    assert (second.estimate.low, second.estimate.high) == pytest.approx((-0.1, 0.1))
    assert second.detectable == pytest.approx((1.959964 + 0.841621) * 0.1 / math.sqrt(3), rel=1e-6)
    assert second.finding == "none"


def test_the_first_arm_named_is_the_baseline(tmp_path: Path) -> None:
    run(tmp_path, "off"), run(tmp_path, "on")
    oracle, _ = compare(open_arms(tmp_path / "runs", ["m/gate=on", "m"]))
    assert oracle.baseline == "gate=on" and oracle.arm == "gate=off"
    assert oracle.estimate.mean == pytest.approx(-0.4 / 3) and oracle.finding == "worse"
    assert [one.baseline for one in compare(open_arms(tmp_path / "runs", ["m"]))] == ["gate=off"] * 2
    assert compare(open_arms(tmp_path / "runs", ["m/gate=on"])) == []


def test_the_last_iteration_that_both_have_evaluated_is_compared(tmp_path: Path) -> None:
    off, on = run(tmp_path, "off"), run(tmp_path, "on")
    off.evaluated(2, {"x": 0.5, "y": 0.5}, {"x": 0.5, "y": 0.5})
    on.evaluated(2, {"x": 0.4, "y": 0.3}, {"x": 0.5, "y": 0.5})
    on.evaluated(3, {"x": 0.9, "y": 0.9}, {"x": 0.9, "y": 0.9})
    oracle, second = against_off(tmp_path)
    assert oracle.iteration == second.iteration == 2
    assert oracle.estimate.mean == pytest.approx(-0.15) and oracle.finding == "worse" and second.finding == "none"


def test_prompts_that_trained_a_judge_are_left_out_for_that_judge(tmp_path: Path) -> None:
    Run(tmp_path, "m/gate=off").begin().based().evaluated(1, {**OFF, "z": math.nan}, OFF_2)
    run(tmp_path, "on")
    oracle, second = against_off(tmp_path)
    assert oracle.estimate.n == 2 and oracle.estimate.mean == pytest.approx(0.1) and second.estimate.n == 3


@pytest.mark.parametrize(
    ("base", "why"),
    [
        ({"says": "c", "seed": 1}, "the base's held-out responses are sampled otherwise (seed=1, not 0)"),
        (
            {"says": "c", "max_tokens": 64},
            "the base's held-out responses are sampled otherwise (sampler.max_tokens=64, not 32)",
        ),
        ({"says": "c", "policy": "other"}, "another base"),
        ({"says": "c", "prompts": "other"}, "other prompts"),
        ({"says": "c", "prompts": "p", "policy": "p"}, "another base; other prompts"),
        ({"says": "c"}, "the base's held-out responses are others"),
    ],
)
def test_another_base_is_not_compared(tmp_path: Path, base: dict[str, Any], why: str) -> None:
    run(tmp_path, "off"), run(tmp_path, "on", base)
    found = against_off(tmp_path)
    assert [(one.why, one.finding, one.estimate.n) for one in found] == [(why, "unknown", 0)] * 2
    assert remarks(found) == [f"m/gate=on is not compared with m/gate=off: {why}."]


def test_what_the_base_said_counts_not_how_it_was_asked(tmp_path: Path) -> None:
    """Other training prompts are other prompts; where the held-out responses are the same, so are the prompts."""
    run(tmp_path, "off"), run(tmp_path, "on", {"prompts": "more of them", "seed": 1}, seed=1)
    oracle, second = against_off(tmp_path)
    assert oracle.finding == "better" and oracle.notes == second.notes
    assert oracle.notes == ("m/gate=on has another seed than m/gate=off (1, not 0)",)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (judge("mini"), "another judge (mini, not lexical)"),
        (judge("lexical", window=9), "the judge lexical is set otherwise (options.window=9, not None)"),
        (judge("lexical", files="retrained"), "the judge lexical is read from other files (judge)"),
    ],
)
def test_another_judge_is_not_compared_and_the_other_one_is(tmp_path: Path, other: dict[str, Any], why: str) -> None:
    run(tmp_path, "off"), run(tmp_path, "on", judges={**JUDGES, "second": other})
    oracle, second = against_off(tmp_path)
    assert oracle.finding == "better" and not oracle.why
    assert [row[1:] for row in rows([oracle, second])] == [(oracle.text, "not compared")]
    assert second.why == why and second.finding == "unknown"
    assert remarks([oracle, second])[0] == f"m/gate=on is not compared with m/gate=off by the second judge: {why}."


def test_a_base_that_was_sampled_again_is_compared_and_that_is_said(tmp_path: Path) -> None:
    """One definition, other bytes: as on two machines whose roundings differ."""
    off, on = run(tmp_path, "off"), run(tmp_path / "elsewhere", "on", {"says": "c"})
    sampled = json.loads((off.folder / "run.json").read_text())["steps"]["00"]["sample_base"]["fingerprint"]
    ours, theirs = (open_arms(one.root / "runs", ["m"])[0] for one in (on, off))
    label = "score_oracle_base"
    score = ours.steps[1][label]
    again = {**score.inputs, "opponents": {**score.inputs["opponents"], "name": sampled}}
    assert "others" in why_not(score, theirs.steps[1][label], None, None)
    ours.steps[1][label] = replace(score, inputs=again)
    oracle, second = compare([theirs, ours])
    assert oracle.finding == "better" and "others" in second.why and not second.notes
    assert oracle.notes == (
        "gate=on was compared with responses of the base that were sampled again: alike, not the same",
    )


def test_scores_of_another_version_are_not_compared(tmp_path: Path) -> None:
    run(tmp_path, "off"), run(tmp_path, "on")
    off, on = (arm.steps[1]["score_oracle_base"] for arm in open_arms(tmp_path / "runs", ["m/gate=off", "m/gate=on"]))
    assert not why_not(on, off, None, None)
    why = why_not(replace(on, version=2), off, None, None)
    assert why == "the judge was asked by another version of the step score (2, not 1)"


def test_one_policy_in_two_arms_is_said(tmp_path: Path) -> None:
    off = run(tmp_path, "off")
    copy = Run(tmp_path, "m/gate=on").begin()
    (copy.folder / "run.json").write_text((off.folder / "run.json").read_text())
    assert {one.why for one in against_off(tmp_path)} == {
        "both have the same held-out responses, so they are one policy"
    }


@pytest.mark.parametrize("common", [0, 1])
def test_prompts_that_are_in_both_are_too_few(tmp_path: Path, common: int) -> None:
    run(tmp_path, "off")
    rates = {"x": 0.9, "other": 0.8} if common else {"other": 0.8}
    Run(tmp_path, "m/gate=on").begin().based().evaluated(1, rates, rates)
    (line,) = remarks(against_off(tmp_path))
    assert f"{common} of the held-out prompts are in both and did not train this judge; it takes two." in line


def test_an_arm_that_is_not_evaluated(tmp_path: Path) -> None:
    run(tmp_path, "off")
    Run(tmp_path, "m/gate=on").begin().based()
    (line,) = remarks(against_off(tmp_path))
    assert line.endswith("there is no iteration that both have evaluated (m/gate=on: none; m/gate=off: 1).")


def test_an_arm_of_which_the_store_has_lost_something_is_named(tmp_path: Path) -> None:
    off, on = run(tmp_path, "off"), run(tmp_path, "on")
    path = _folder(on, "01", "score_oracle_base") / "part-00000.test.parquet"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(DataError, match=re.escape(str(path))):
        against_off(tmp_path)
    path.unlink()
    with pytest.raises(
        DataError, match=r"runs/m/gate=on: iteration 1, score_oracle_base: .*parquet is missing"
    ) as only:
        open_arms(tmp_path / "runs", ["m"])
    assert "gate=off" not in str(only.value)
    shutil.rmtree(_folder(off, "00", "sample_base"))
    with pytest.raises(DataError, match=r"runs/m/gate=off: iteration 0, sample_base: .* 1 other arm\."):
        open_arms(tmp_path / "runs", ["m"])


def _folder(one: Run, t: str, label: str) -> Path:
    entry = json.loads((one.folder / "run.json").read_text())["steps"][t][label]
    return one.store / f"{label.partition('_')[0]}-{entry['fingerprint'][:8]}"


def three(root: Path) -> None:
    """off, on and an arm of another base, whose name is markup and terminal codes."""
    run(root, "off"), run(root, "on"), run(root, "<b>\x1b[31m", {"says": "c", "policy": "other"})


def test_the_limits_are_said(tmp_path: Path) -> None:
    three(tmp_path)
    found = compare(open_arms(tmp_path / "runs", ["m/gate=off", "m"]))
    refused, seeds, power = remarks(found)
    assert refused.startswith("gate=<b>") and refused.endswith("is not compared with gate=off: another base.")
    assert seeds.startswith("95% intervals over prompts. They do not include seed variance")
    assert (
        "larger than the detectable one: a true difference of that size has such an interval 80% of the time" in power
    )
    twice = [one for one in found if not one.why] * 2
    assert remarks(twice)[-1].startswith("4 comparisons at 95%: if no arm differed from any other, 0.2 of them would")


def test_the_terminal(tmp_path: Path) -> None:
    three(tmp_path)
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    print_comparisons(compare(open_arms(tmp_path / "runs", ["m/gate=off", "m"])), console)
    text = console.export_text()
    lines = [[part.strip() for part in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert lines == [
        ["gate=on", "+0.133 [+0.100, +0.200]", "+0.000 [-0.100, +0.100]"],
        ["iteration 1", "better", "no difference detectable"],
        ["", "n=3, detectable 0.093", "n=3, detectable 0.162"],
    ]
    assert "Each arm against gate=off" in text and "gate=<b>\\x1b[31m is not compared" in text
    print_comparisons([], console)
    assert console.export_text(clear=False) == ""


def test_the_page(tmp_path: Path) -> None:
    three(tmp_path)
    arms = open_arms(tmp_path / "runs", ["m/gate=off", "m"])
    html = page_of(arms)
    top = html[html.index("<header>") : html.index("</header>")]
    assert "<h2>Each arm against gate=off</h2>" in top
    assert "<td>+0.133 [+0.100, +0.200]\nbetter\nn=3, detectable 0.093</td>" in top
    assert "\nno difference detectable\n" in top and top.count("<svg") == 3  # the chart, and its legend's two
    assert "<li>gate=&lt;b&gt;\\x1b[31m is not compared with gate=off: another base.</li>" in top
    assert top.index("last evaluated") < top.index("Each arm against")
    assert "Each arm against" not in page_of(arms[:1])


def test_arms_that_cannot_be_compared_have_their_line_on_the_page(tmp_path: Path) -> None:
    run(tmp_path, "off"), run(tmp_path, "on", {"says": "c"})
    arms = open_arms(tmp_path / "runs", ["m"])
    html = page_of(arms)
    top = html[html.index("<header>") : html.index("</header>")]
    assert "gate=on is not compared with gate=off: the base&#39;s held-out responses are others." in top
    assert "<svg" not in top and "detectable" not in top


def test_the_report_of_two_arms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    three(tmp_path)
    out = tmp_path / "figures.json"
    assert main(["report", "m/gate=off", "m", "--runs", str(tmp_path / "runs"), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.rindex("run gate=on") < printed.index("Each arm against gate=off") < printed.index("report.html")
    assert "Each arm against gate=off" in (tmp_path / "runs" / "m" / "gate=off" / "report.html").read_text()
    content = json.loads(out.read_text())
    by_arm = {(one["arm"], one["judge"]): one for one in content["comparisons"]}
    assert {arm for arm, _ in by_arm} < {arm["label"] for arm in content["arms"]} and len(by_arm) == 4
    oracle, refused = by_arm["gate=on", "oracle"], by_arm["gate=<b>\x1b[31m", "second"]
    assert oracle["difference"] == pytest.approx(0.4 / 3) and oracle["detectable"] == pytest.approx(0.0933862, rel=1e-5)
    assert (oracle["baseline"], oracle["iteration"], oracle["prompts"]) == ("gate=off", 1, 3)
    assert (oracle["finding"], oracle["why"], oracle["confidence"]) == ("better", None, 0.95)
    assert refused["why"] == "another base" and refused["finding"] is None and refused["difference"] is None
