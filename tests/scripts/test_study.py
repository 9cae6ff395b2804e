"""Studies: the formulas by hand, what is said of them, the arms of the presets, and a whole one on a tiny policy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from rich.console import Console

from scripts.study import compare, elsewhere, figure, report, words
from scripts.study.__main__ import main
from scripts.study.compare import ArmDifference, ArmsAtIteration
from scripts.study.presets import STUDIES, Study, label, overrides_of
from scripts.study.read import FIGURES, Policy, StudyData, read
from sparring.pipeline import config
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.evaluate.bootstrap import Bootstrap, Estimate, detectable
from tests.faults.harness import overrides, write_prompts
from tests.pipeline.report.fabricated import Run
from tests.refusals import named, refused
from tests.tiny import tiny_policy

SETTINGS = Bootstrap(resamples=400, confidence=0.95)
PAIR = (("a", "b"),)


def test_an_arms_win_rate_is_the_mean_over_seeds_then_prompts() -> None:
    rates = {"a": {0: {"x": 0.2, "y": 0.6}, 1: {"x": 0.4, "y": 0.8, "z": 0.0}}, "b": {0: {"x": 0.1, "y": 0.9}}}
    found = compare.judged(3, "oracle", rates, PAIR, SETTINGS)
    assert found.arms["a"].mean == pytest.approx((0.3 + 0.7) / 2) and found.arms["a"].n == 2
    (one,) = found.comparisons
    assert one.by_seed == pytest.approx([(0.1 - 0.3) / 2]), "b has no seed 1: only seed 0 is compared"
    assert one.difference.mean == pytest.approx(-0.1) and one.difference.n == 2


def test_differences_are_paired_by_prompt() -> None:
    """Prompts vary by far more than arms; a constant difference has no error at all."""
    easy = {f"p{i}": i / 40 for i in range(40)}
    harder = {prompt: rate - 0.01 for prompt, rate in easy.items()}
    (one,) = compare.judged(1, "oracle", {"a": {0: easy}, "b": {0: harder}}, PAIR, SETTINGS).comparisons
    assert one.difference.low == pytest.approx(0.01) and one.difference.high == pytest.approx(0.01)
    assert one.detectable == pytest.approx(0.0, abs=1e-12) and one.finding == "better"
    differences = compare.judged(1, "oracle", {"a": {0: easy}, "b": {0: harder}}, (("b", "a"),), SETTINGS)
    assert differences.comparisons[0].finding == "worse"


def test_an_effect_as_large_as_the_detectable_one_has_its_interval_four_times_in_five() -> None:
    """It is called better where the measured one is larger than that: half of the time."""
    rng = np.random.default_rng(0)
    prompts = [f"p{i}" for i in range(100)]
    effect = detectable(list(rng.normal(0, 0.2, 2000)), 0.95) * math.sqrt(2000 / 100)
    excluded = found = 0
    for _ in range(200):
        arm = dict(zip(prompts, rng.normal(effect, 0.2, 100).tolist(), strict=True))
        rates = {"a": {0: arm}, "b": {0: dict.fromkeys(prompts, 0.0)}}
        (one,) = compare.judged(1, "oracle", rates, PAIR, SETTINGS).comparisons
        excluded += one.difference.low > 0
        found += one.finding == "better"
    assert 140 <= excluded <= 180 and 75 <= found <= 125


def test_the_deviation_of_seeds_by_hand() -> None:
    assert compare.seed_sd([[0.5, 0.6], [0.4, 0.4]]) == pytest.approx(math.sqrt((2 * 0.05**2) / 2))
    assert compare.seed_sd([[0.5, 0.6, 0.7]]) == pytest.approx(stdev([0.5, 0.6, 0.7]))
    assert compare.seed_sd([[0.5], [0.4]]) is None


def test_what_seeds_alone_do_by_hand() -> None:
    assert compare.luck(0.01, 2, 0.95) == pytest.approx(1.959964 * 0.01, rel=1e-6)
    assert compare.luck(0.01, 8, 0.95) == pytest.approx(1.959964 * 0.005, rel=1e-6)
    assert compare.luck(None, 2, 0.95) == compare.luck(0.01, 0, 0.95) == 0.0


def test_equal_arms_whose_trainings_differ_are_seldom_told_apart() -> None:
    """Six arms that are equal but for what their seeds did: a bootstrap over prompts alone finds most of them."""
    rng, prompts, told, found = np.random.default_rng(1), [f"p{i}" for i in range(50)], 0, 0
    arms = "abcdef"
    for _ in range(40):
        rates = {
            arm: {seed: dict.fromkeys(prompts, 0.5 + float(rng.normal(0, 0.02))) for seed in (0, 1)} for arm in arms
        }
        for one in compare.judged(1, "oracle", rates, [(arm, "a") for arm in arms[1:]], SETTINGS).comparisons:
            told += one.difference.low > 0 or one.difference.high < 0
            found += one.finding in ("better", "worse")
    assert told == 200 and found <= 20


def comparison(low: float, high: float, *by_seed: float) -> ArmDifference:
    middle = Estimate(mean=(low + high) / 2, low=low, high=high, n=400)
    return ArmDifference(arm="a", than="b", difference=middle, detectable=0.018, by_seed=by_seed, luck=0.015)


@pytest.mark.parametrize(
    ("one", "finding", "text"),
    [
        (comparison(0.01, 0.03, 0.01, 0.03), "better", "better than b, +0.020 [+0.010, +0.030] on 400 prompts"),
        (comparison(-0.03, -0.01, -0.02), "worse", "worse than b, -0.020 [-0.030, -0.010] on 400 prompts"),
        (comparison(0.01, 0.03, -0.01, 0.05), "luck", "no difference from b is shown: seeds of one arm alone differ"),
        (comparison(0.01, 0.028, -0.01, 0.028), "luck", "no difference from b is shown: seeds of one arm alone differ"),
        (comparison(0.001, 0.033, 0.01, 0.018), "none", "no difference from b is detectable, +0.017 [+0.001, +0.033]"),
        (comparison(-0.01, 0.03, 0.01, 0.01), "none", "no difference from b is detectable, +0.010 [-0.010, +0.030]"),
        (comparison(math.nan, math.nan), "unknown", "no prompt in common with b"),
    ],
)
def test_what_a_comparison_found(one: ArmDifference, finding: str, text: str) -> None:
    assert one.finding == finding
    assert words.against(one).startswith(text)


def test_what_was_missed_is_said() -> None:
    said = words.against(comparison(-0.01, 0.03, 0.01, 0.01))
    assert said.endswith("it takes more than 0.018 and an interval without 0")
    assert "(by seed: +0.010, +0.010)" in said


def test_against_the_base() -> None:
    def said(mean: float, half: float) -> str:
        return words.against_base(Estimate(mean=mean, low=mean - half, high=mean + half, n=9), 0.95)

    assert said(0.54, 0.02).startswith("better than the base, 0.540") and said(0.46, 0.02).startswith("worse than the")
    assert said(0.54, 0.03).startswith("no difference from the base is detectable, 0.540 [0.510, 0.570]: it takes more")
    assert said(0.52, 0.03).startswith("not to be told from the base")


def two_judges(oracle: float, second: float) -> list[ArmsAtIteration]:
    rates = {"oracle": oracle, "second": second}
    return [
        ArmsAtIteration(
            iteration=3,
            judge=judge,
            arms={"a": Estimate(mean=mean, low=mean - 0.01, high=mean + 0.01, n=400)},
            comparisons=(comparison(-0.01, 0.03, 0.01, 0.01),) * 5,
            seed_sd=0.02,
        )
        for judge, mean in rates.items()
    ]


def test_the_alarm_and_the_limits() -> None:
    assert "ALARM" in words.verdicts(two_judges(0.6, 0.48), 0.95)[-1]
    assert not any("ALARM" in line for line in words.verdicts(two_judges(0.6, 0.52), 0.95))
    many, oracle, _ = words.limits(two_judges(0.6, 0.52), 0.95)
    assert many.startswith("10 comparisons at 95%: if no arm differed from any other, 0.5 of them")
    assert "standard deviation of 0.020" in oracle and "differences of up to 0.015" in oracle


@pytest.mark.parametrize("name", STUDIES)
def test_the_arms_of_a_study_are_those_it_compares(name: str) -> None:
    study = STUDIES[name]
    more = ["hardware=cpu", "prompts=file", "prompts.path=mine.jsonl"]
    arms = dict(config.expand(overrides_of(study, more)))
    labels = {label(arm) for arm in arms}
    assert {study.baseline, *(arm for pair in study.also for arm in pair)} <= labels
    configs = [config.load(words) for words in arms.values()]
    assert len({str((c.objective, c.gate, c.repulsion, c.trainer, c.seed)) for c in configs}) == len(configs)
    assert len({c.run.name for c in configs}) == 1
    if name == "small":
        assert len(arms) == 12 and labels == {
            "sppo",
            "s_sppo",
            "gate_only",
            "repulsion_only",
            "gate_permuted",
            "dpo",
        }
        assert {(c.iterations, c.prompts.heldout) for c in configs} == {(3, 400)}
        seeds = [c.seed for c in configs]
        assert seeds == sorted(seeds), "every arm's first seed comes before any arm's second"


def test_overrides_replace_those_of_the_study() -> None:
    study = Study(overrides=("seed=0,1", "experiment=sppo,s_sppo"), baseline="sppo")
    assert overrides_of(study, ["seed=3", "gate=off"]) == ["seed=3", "experiment=sppo,s_sppo", "gate=off"]
    with refused(ConfigError, "make study-small PROMPTS="):
        overrides_of(STUDIES["small"], ["prompts.heldout=500"])


def test_labels() -> None:
    assert label("seed=0,experiment=s_sppo") == "s_sppo"
    assert label("trainer.lr=1e-05,trainer.global_batch=8") == "lr=1e-05,global_batch=8"


def test_comparisons_of_the_arms_that_there_are() -> None:
    study = Study(overrides=(), baseline="sppo", also=(("s_sppo", "permuted"),))
    assert study.comparisons(["sppo", "s_sppo"]) == [("s_sppo", "sppo")]
    assert study.comparisons(["sppo", "s_sppo", "permuted"])[-1] == ("s_sppo", "permuted")


def test_a_study_without_its_baseline_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "--plan", "hardware=cpu", "experiment=s_sppo"]) == 2
    named(capsys.readouterr().err, "error: ", "two", "sppo")


def policies() -> list[Policy]:
    """Two arms, two seeds, two iterations; the second seed of b has not come to iteration 2."""
    rng, found = np.random.default_rng(0), []
    for arm, shift in (("b", 0.0), ("a", 0.2)):
        for seed, t in ((0, 1), (1, 1), (0, 2), (1, 2)):
            if (arm, seed, t) == ("b", 1, 2):
                continue
            rates = {f"p{i}": 0.4 + shift + float(rng.normal(0, 0.05)) for i in range(30)}
            figures = {"response tokens, mean": 70.0 + seed, "h chosen, after": 1.0 * t}
            found.append(
                Policy(arm=arm, seed=seed, iteration=t, rates={"oracle": rates, "second": rates}, figures=figures)
            )
    return found


def written(folder: Path) -> tuple[str, list[dict[str, object]]]:
    study = Study(overrides=(), baseline="b", note="A note.")
    base: Mapping[int, Mapping[str, float]] = {0: {"response tokens, mean": 60.0}, 1: {"response tokens, mean": 62.0}}
    found = StudyData(policies=tuple(policies()), base=base, manifests={}, last={})
    made, compared = report.make("mine", study, found, config.load(["hardware=cpu"]), planned=8)
    report.write(made, folder, "figure.png")
    figure.draw(folder / "figure.png", compared, report.averaged(found.policies), report.mean_of([*base.values()]), "x")
    console = Console(width=200, record=True, quiet=True)
    report.show(made, console)
    return (folder / "report.md").read_text(), json.loads((folder / "rows.json").read_text())


def test_the_report(tmp_path: Path) -> None:
    text, rows = written(tmp_path)
    assert "7 of 8 policies" in text and "A note." in text and "![](figure.png)" in text
    assert "- **a**, iteration 2, oracle: better than the base" in text and "better than b, +0." in text
    for line in ("| base | 0 | 61.0 |  |", "| a | 2 | 70.5 | +2.00 |", "| b | 2 | 70.0 | +2.00 |"):
        assert line in text
    by_name = {(row["case"], row["metric"]): row for row in rows}
    rates = [p.rates["oracle"] for p in policies() if (p.arm, p.iteration) == ("a", 1)]
    expected = fmean(fmean(one.values()) for one in rates)
    assert by_name["a, iteration 1", "win rate against the base, oracle"]["value"] == pytest.approx(expected)
    differences = by_name["a, iteration 2", "win rate minus that of b, second judge"]
    assert differences["baseline"] == "b" and differences["finding"] == "better" and len(differences["by_seed"]) == 1  # type: ignore[arg-type]
    assert all(row.keys() >= {"case", "metric", "value", "unit", "baseline", "ratio", "aim"} for row in rows)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def here_and_there(tmp_path: Path) -> tuple[StudyData, Path, list[config.Config]]:
    """Seed 0 here, seed 1 in the file of another machine."""
    parts = [[policy for policy in policies() if policy.seed == seed] for seed in (0, 1)]
    base: list[Mapping[int, Mapping[str, float]]] = [{seed: {"response tokens, mean": 60.0 + seed}} for seed in (0, 1)]
    mine, theirs = (
        StudyData(policies=tuple(p), base=b, manifests={}, last={}) for p, b in zip(parts, base, strict=True)
    )
    arms = [config.load(["hardware=cpu", f"experiment={name}", "run.name=a"]) for name in ("sppo", "s_sppo")]
    path = tmp_path / "policies.json"
    elsewhere.write(path, theirs, elsewhere.shared(arms))
    return mine, path, arms


def test_policies_of_another_machine_join(tmp_path: Path) -> None:
    mine, path, arms = here_and_there(tmp_path)
    elsewhere_run = [config.load(["hardware=cpu", "experiment=dpo", "run.name=b", "seed=7", "iterations=3"])]
    both = elsewhere.joined(mine, [path], elsewhere.shared([*arms, *elsewhere_run]))
    key = lambda one: (one.arm, one.seed, one.iteration)  # noqa: E731
    assert sorted(map(key, both.policies)) == sorted(map(key, policies())) and set(both.base) == {0, 1}
    wanted = {key(one): one for one in policies()}
    for one in both.policies:
        assert one.rates["second"] == pytest.approx(wanted[key(one)].rates["second"], abs=1e-6)
        assert one.figures == wanted[key(one)].figures


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (["policy=folder", "policy.path=/here"], ["policy=folder", "policy.path=/there"]),
        (["encoder=folder", "encoder.path=/here"], ["encoder=folder", "encoder.path=/there"]),
        (["oracle=pairrm", "oracle.path=/here"], ["oracle=pairrm", "oracle.path=/there"]),
        (["sampler=server", "sampler.urls=[http://a:1]"], ["sampler=server", "sampler.urls=[http://b:1]"]),
        ([], ["trainer.checkpoint_steps=7", "trainer.band_every=7", "run.name=b", "seed=3", "iterations=9"]),
    ],
)
def test_what_may_differ_between_machines_is_not_compared(here: list[str], there: list[str]) -> None:
    own, other = (elsewhere.shared([config.load(["hardware=cpu", *words])]) for words in (here, there))
    assert own == other and {"trainer.lr", "policy.source", "sampler.k"} <= own.keys()


def test_policies_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    mine, path, arms = here_and_there(tmp_path)
    other = [config.load(["hardware=cpu", "experiment=sppo", "sampler.k=5"])]
    with refused(DataError, "policies.json", "sampler.k is 4", "5"):
        elsewhere.joined(mine, [path], elsewhere.shared(other))
    elsewhere.write(path, mine, {**elsewhere.shared(arms), "files of policy": "ab12"})
    with refused(DataError, "policies.json", "ab12", "cd34"):
        elsewhere.joined(mine, [path], {**elsewhere.shared(arms), "files of policy": "cd34"})
    _, path, _ = here_and_there(tmp_path)
    with refused(DataError, "seed 1, iteration 1"):
        elsewhere.joined(mine, [path, path], elsewhere.shared(arms))
    path.write_text("[]")
    with refused(DataError, "policies.json"):
        elsewhere.joined(mine, [path], elsewhere.shared(arms))


def test_policies_are_read_from_the_reports_of_the_arms(tmp_path: Path) -> None:
    for seed in (0, 1):
        arm = Run(tmp_path, f"study/seed={seed},experiment=sppo").begin()
        arm.add(0, "sample_base", summary={"length_mean": 80.0 + seed, "distinct_2": 0.75})
        arm.trained(1)
        arm.evaluated(1, {"x": 0.6, "y": 0.7}, {"x": 0.5, "y": 0.6})
        arm.add(2, "sample", summary={"unique_rate": 0.9})  # not evaluated yet
    found = read(tmp_path / "runs" / "study", {f"seed={seed},experiment=sppo": seed for seed in (0, 1, 2)})
    assert [(one.arm, one.seed, one.iteration) for one in found.policies] == [("sppo", 0, 1), ("sppo", 1, 1)]
    assert found.policies[0].rates["oracle"] == pytest.approx({"x": 0.6, "y": 0.7})
    assert found.policies[0].figures == {
        "response tokens, mean": 85.0, "cut at max_tokens": 0.1, "h chosen, after": 1.0, "h rejected, after": -2.0
    }  # fmt: skip
    assert found.base[1] == {"response tokens, mean": 81.0, "distinct-2 in a response": 0.75}
    assert set(found.last) >= {"train", "evaluate"} and len(found.manifests) == 18


def test_the_last_iteration_is_one_that_most_arms_reached() -> None:
    few = [policy for policy in policies() if (policy.arm, policy.iteration) != ("b", 2)]
    found = report.rounds(few, Study(overrides=(), baseline="b"), SETTINGS)
    assert {one.iteration for one in report.last_of(found)} == {1}


def test_arms_are_told_apart_without_colour() -> None:
    drawn = {(str(figure.style(i)["marker"]), str(figure.style(i)["linestyle"])) for i in range(9)}
    assert len(drawn) == 9
    assert set(figure.PANELS) <= set(FIGURES)


@pytest.mark.slow
def test_a_study_on_a_tiny_policy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two arms, two seeds, two iterations: what they share is made once, the report is made again in seconds."""
    policy = tiny_policy(tmp_path / "policy")
    write_prompts(tmp_path / "prompts.jsonl")
    arguments = ["smoke", "seed=0,1", *overrides(tmp_path, policy)]
    assert main(["--report", *arguments]) == 2
    named(capfd.readouterr().err, "error: ", "study-smoke")
    assert main(arguments) == 0, capfd.readouterr().err
    folder = tmp_path / "runs" / "study-smoke"
    text = (folder / "report.md").read_text()
    assert "8 of 8 policies" in text
    assert text.count("**sppo**, iteration 2, ") == text.count("**s_sppo**, iteration 2, ") == 2
    books = {path.parent.name: json.loads(path.read_text())["steps"] for path in folder.glob("*/run.json")}
    for seed in "01":
        plain, gated = (books[f"seed={seed},experiment={name}"] for name in ("sppo", "s_sppo"))
        assert plain["01"]["sample"] == gated["01"]["sample"] and plain["01"]["train"] != gated["01"]["train"]
    assert books["seed=0,experiment=sppo"]["01"]["sample"] != books["seed=1,experiment=sppo"]["01"]["sample"]
    capfd.readouterr()
    assert main(["--report", *arguments]) == 0
    assert (folder / "report.md").read_text() == text
    assert main(["--report", *arguments, "--with", str(folder / "policies.json")]) == 2
    named(capfd.readouterr().err, "policies.json", "seed ", "iteration ")
    shown = {(row["case"], row["metric"]): row for row in json.loads((folder / "rows.json").read_text())}
    evaluated = [_evaluated(tmp_path, books[f"seed={seed},experiment=sppo"]["02"]["evaluate"]) for seed in "01"]
    assert shown["sppo, iteration 2", "win rate against the base, oracle"]["value"] == pytest.approx(fmean(evaluated))


def _evaluated(folder: Path, entry: dict[str, str]) -> float:
    """The oracle's win rate against the base, as the step `evaluate` has it."""
    manifest = json.loads((folder / "store" / f"evaluate-{entry['fingerprint'][:8]}" / "manifest.json").read_text())
    rows = manifest["summary"]["comparisons"]
    return float(next(r["win_rate"] for r in rows if (r["opponent"], r["judge"]) == ("base", "oracle")))
