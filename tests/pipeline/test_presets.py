"""Presets: the published recipes load on any hardware, their results are the published ones, the report prints them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparring.pipeline import config
from sparring.pipeline.cli import main
from sparring.pipeline.planning import estimate
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.planning.rates import Rate
from sparring.pipeline.report import recipe
from sparring.pipeline.report.data import ArmReport
from sparring.pipeline.report.terminal import print_report
from sparring.pipeline.runs import run_record
from sparring.pipeline.runs.run_history import RunHistory, open_run
from sparring.pipeline.sources import Sources
from sparring.stages.errors import ConfigError
from tests.pipeline.export.fabricated import Fabricated
from tests.pipeline.plans import labels, plan_of
from tests.refusals import refused

PUBLISHED = {
    "sppo_mistral_7b": "17.11/14.72/1676 24.79/23.51/1855 26.89/27.62/2019 28.53/31.02/2163",
    "sppo_llama3_8b": "22.92/22.57/1899 31.73/31.74/1962 35.15/35.98/2021 38.77/39.85/2066",
    "sppo_gemma2_9b": "45.08/35.62/None 48.70/40.76/1669 50.93/44.64/1759 53.27/47.74/1803",
    "s_sppo_llama3_8b": "22.92/22.57/1899 47.46/52.19/None",
    "dpo_iterative_mistral_7b": "17.11/14.72/1676 23.81/20.44/1723 24.23/24.46/2028 22.30/23.39/2189",
}
BEST_OF_16 = {"sppo_mistral_7b": "22.45/17.94/1529 28.71/27.77/1901 31.23/32.12/2035 32.13/34.94/2174"}
RECIPE: dict[str, Any] = {
    "prompts.source": "hub",
    "prompts.dataset": "UCLA-AGI/data-mistral-7b-instruct-sppo-iter{slice}",
    "prompts.revision": "main",
    "prompts.subset": None,
    "prompts.split": "train",
    "prompts.column": "prompt",
    "prompts.limit": None,
    "prompts.per_iteration": None,
    "prompts.slices": 3,
    "prompts.max_tokens": 512,
    "sampler.k": 5,
    "sampler.max_tokens": 2048,
    "sampler.temperature": 0.7,
    "sampler.top_p": 0.9,
    "sampler.min_p": 0.0,
    "sampler.stop": [],
    "sampler.dtype": "bfloat16",
    "oracle.kind": "pairrm",
    "oracle.repo": "llm-blender/PairRM",
    "oracle.revision": "main",
    "oracle.options.dtype": "auto",
    "oracle.opponents": None,
    "gate.name": "off",
    "objective.name": "sppo",
    "objective.beta": 0.001,
    "objective.loss_scale": None,
    "repulsion.name": "off",
    "calibration.name": "off",
    "trainer.optimizer": "rmsprop",
    "trainer.lr": 5e-7,
    "trainer.adapter.name": "off",
    "trainer.warmup_ratio": 0.1,
    "trainer.schedule": "linear",
    "trainer.epochs": 1,
    "trainer.global_batch": 64,
    "trainer.max_grad_norm": 1.0,
    "trainer.weight_decay": 0.0,
    "trainer.max_length": 1024,
    "trainer.truncate": "keep_end",
    "trainer.dtype": "bfloat16",
    "trainer.publish_dtype": "bfloat16",
    "win_rate": "aggregate_score",
    "selection.by": "extremes",
    "selection.values": "win_rates",
    "selection.require_head_to_head": False,
    "selection.capped": "keep",
    "entry.samples": None,
    "entry.pairs": None,
}
"""SPPO's, as published with its code."""
S_SPPO: dict[str, Any] = {
    "win_rate": "matrix",
    "encoder.source": "embedded",
    "encoder.window": 256,
    "gate.name": "linear",
    "gate.floor": 0.0,
    "gate.floor_quantile": None,
    "gate.ceil": 1.0,
    "gate.ceil_quantile": None,
    "gate.scope": "pairwise",
    "repulsion.name": "hinge",
    "repulsion.weight": 0.002,
    "repulsion.margin": 1.0,
    "repulsion.pooling": "mean",
    "repulsion.layer": -1,
}
DPO = {"objective.name": "dpo", "objective.beta": 0.1, "objective.label_smoothing": 0.0}
OWN: dict[str, dict[str, Any]] = {"s_sppo_llama3_8b": S_SPPO, "dpo_iterative_mistral_7b": DPO}
BASES = {
    "mistral": ("mistral-7b-instruct-v0.2", "mistralai/Mistral-7B-Instruct-v0.2", "3ad372fc", "</s>"),
    "llama3": ("llama-3-8b-instruct", "meta-llama/Meta-Llama-3-8B-Instruct", "8afb486c", "<|eot_id|>"),
    "gemma2": ("gemma-2-9b-it", "google/gemma-2-9b-it", "11c9b309", "<end_of_turn>"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_recipe(name: str) -> None:
    """Key for key: a group or a default that changes later does not change what a preset stands for."""
    found = recipe.of_preset(name)
    policy = {key: found.pop(key) for key in list(found) if key.startswith("policy.")}
    assert found == {**RECIPE, **OWN.get(name, {})}
    base, repo, commit, stop = next(base for part, base in BASES.items() if part in name)
    assert (policy["policy.name"], policy["policy.repo"], policy["policy.stop"]) == (base, repo, [stop])
    assert policy["policy.revision"].startswith(commit) and policy["policy.source"] == "hub"


@pytest.mark.parametrize("hardware", ["cpu", "h100x8"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_its_published_results_and_any_hardware(name: str, hardware: str) -> None:
    found = config.load([f"experiment={name}", f"hardware={hardware}"])
    assert found.iterations == 3
    assert found.published is not None and found.published.benchmark == "AlpacaEval 2.0"
    rows = {n: [row for row in found.published.rows if row.best_of == n] for n in (1, 16)}
    said = {n: " ".join(f"{r.lc:.2f}/{r.wr:.2f}/{r.length}" for r in some) for n, some in rows.items()}
    assert said == {1: PUBLISHED[name], 16: BEST_OF_16.get(name, "")}
    iterations = [0, None] if name.startswith("s_sppo") else [0, 1, 2, 3]
    assert [row.iteration for row in rows[1]] == iterations
    assert [row.iteration for row in rows[16]] == (iterations if name in BEST_OF_16 else [])


def test_the_quick_start_is_the_default_run_by_name() -> None:
    assert config.load(["experiment=quickstart_cpu", "hardware=cpu"]).published is None
    assert labels(plan_of("experiment=quickstart_cpu")) == labels(plan_of())


def test_the_command_line_wins_over_a_preset() -> None:
    overrides = ["experiment=sppo_mistral_7b", "hardware=cpu", "iterations=1", "gate=linear", "win_rate=matrix"]
    found = config.load([*overrides, "published=null"])
    assert (found.iterations, found.gate.name, found.win_rate, found.published) == (1, "linear", "matrix", None)


def test_published_results_are_in_no_fingerprint() -> None:
    assert labels(plan_of("experiment=sppo_mistral_7b")) == labels(
        plan_of("experiment=sppo_mistral_7b", "published=null")
    )


def test_published_results_are_checked() -> None:
    with refused(ConfigError, "published.rows.0.lc"):
        config.load(["experiment=sppo_mistral_7b", "published.rows=[{iteration: 0, lc: much, wr: 1, length: 2}]"])


def test_a_plan_without_the_hub_says_so_and_has_a_bill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=sppo_mistral_7b", "hardware=h100x8", "hardware.usd_per_hour=24", f"paths.store={tmp_path}"]
    assert main(["plan", *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "51 steps, 51 to do" in out and "GPU-hours on 8 GPUs, $" in out and "at $24 an hour" in out
    assert "rates of hardware=h100x8: estimated, not measured" in out
    assert "to be downloaded, and not in these figures:" in out and "mistralai/Mistral-7B-Instruct-v0.2" in out
    assert "since the hub does not answer: model llm-blender/PairRM" in out


COSTS = {"mistral": (60, 150), "llama3": (65, 166), "gemma2": (71, 191)}
"""Minutes with PairRM in bf16, and GiB at the peak, about."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_preset_has_a_plan_with_its_cost(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"experiment={name}", "hardware=h100x8", "hardware.usd_per_hour=24", f"paths.store={tmp_path}"]
    assert main(["plan", *words, "oracle.options.dtype=bfloat16"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    minutes, peak = next(cost for part, cost in COSTS.items() if part in name)
    whole = re.search(r"about [\d,]+ tokens, ([\d.]+) minutes, ([\d.]+) GiB of disk at the peak", out)
    assert whole is not None
    assert (float(whole[1]), float(whole[2])) == (pytest.approx(minutes, rel=0.1), pytest.approx(peak, rel=0.01))
    billed = re.search(r"([\d.]+) GPU-hours on 8 GPUs, \$([\d.]+) at \$24 an hour \(.*estimated, not measured\)", out)
    assert billed is not None
    assert float(billed[1]) == pytest.approx(8 * float(whole[1]) / 60, abs=0.1)
    assert float(billed[2]) == pytest.approx(24 * float(whole[1]) / 60, abs=0.1)
    (repo,) = {repo for part, (_, repo, _, _) in BASES.items() if part in name}
    assert f"the model {repo}" in out


def test_a_plan_sums_minutes_by_step_and_iteration_and_says_how_rates_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment=s_sppo_llama3_8b", "hardware=h100x8", f"paths.store={tmp_path}"]
    assert main(["plan", *words, "oracle.options.dtype=bfloat16"]) == 0
    out = capsys.readouterr().out
    rows = re.findall(r"^ (\w+) +((?:[\d.]+ +){5})$", out, re.M)
    table = {kind: [float(cell) for cell in cells.split()] for kind, cells in rows}
    sums, parts = table["all"], [table[kind] for kind in ("sample", "score", "embed", "reference", "train")]
    assert len(sums) == 5 and sums[4] == pytest.approx(sum(sums[:4]), abs=0.2) and all(t <= 22 for t in sums[1:4])
    assert all(part[4] == pytest.approx(sum(part[:4]), abs=0.2) for part in parts)
    for kind, unit in (("sample", "tokens/s"), ("score", "ordered pairs/s"), ("train", "tokens/s")):
        assert re.search(rf"^{kind}: [\d,]+ {unit} a GPU \(estimated: h100, ", out, re.M)
    assert "Estimated rates, which no GPU has shown, assume: the engines' batch-invariant mode" in " ".join(out.split())


def test_without_a_price_there_are_hours_alone() -> None:
    rate = Rate(per_s=1, unit="tokens", known="estimated: h100")
    whole = estimate.Cost(tokens=0, seconds=3600, kept_bytes=0, peak_bytes=0, rate=rate)
    assert estimate.price(config.load(["hardware=cpu"]), whole) is None
    eight = config.load(["hardware=h100x8", "experiment=sppo_mistral_7b"])
    text = "8.0 GPU-hours on 8 GPUs (rates of hardware=h100x8: estimated, not measured)"
    assert eight.hardware.gpus == 8 and estimate.price(eight, whole) == text


STATED = (
    "hardware.expect.sample_tokens_per_s=6000",
    "hardware.expect.score_duels_per_s=25",
    "hardware.expect.start_s=90",
)


def test_what_works_side_by_side_counts_and_so_do_the_oracles_duels() -> None:
    words = ["experiment=sppo_mistral_7b", "prompts=file", "prompts.path=p.jsonl", "prompts.per_iteration=800"]
    costs = {}
    for engines in (1, 8):
        chosen = config.load(
            [*words, "hardware=h100x8", *STATED, f"hardware.engines={engines}", f"hardware.annotators={engines}"]
        )
        plan = build({"": chosen}, _Anywhere())
        by_label = {step.uses[0].label: step for step in plan.steps.values() if step.uses[0].iteration == 1}
        costs[engines] = {label: estimate.Estimate(plan, []).cost(step) for label, step in by_label.items()}
    for label, units in (("sample", 800 * 5 * 512 / 6000), ("score", 800 * 20 / 25)):
        one, eight = (costs[n][label].seconds - 90 for n in (1, 8))
        assert one == pytest.approx(units) and eight == pytest.approx(units / 8)


class _Anywhere(Sources):
    """Names alone: nothing of them is read."""

    def __init__(self) -> None:
        super().__init__(assume=True)

    def prompts(self, config: object) -> dict[str, object]:  # type: ignore[override]
        from sparring.stages.step import Input

        return {"source": Input(role="source", root=Path(), digest="5" * 64)}


def test_the_report_prints_what_was_published_beside_ours(tmp_path: Path) -> None:
    run = Fabricated(tmp_path)
    run.begin(["experiment=s_sppo_llama3_8b"])
    run.evaluate(1, (0.51, 0.48, 0.54))
    console = Console(record=True, width=160)
    print_report(ArmReport.of(open_run(run.runs, run.name)), console)
    lines = console.export_text().splitlines()
    row = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]] for line in lines if "│" in line
    }
    assert any("published (arXiv 2606.01561): AlpacaEval 2.0" in line for line in lines)
    assert row["published LC win rate, %"] == ["22.92", "", "47.46"]
    assert row["published mean length"] == ["1899", "", ""]
    assert row["ours, held-out win rate, second judge: vs base"] == ["", "0.510 [0.480, 0.540]", ""]
    assert any("are another evaluation" in line for line in lines) and any("not stated" in line for line in lines)
    assert not any("differs from the recipe" in line for line in lines)


def test_best_of_n_stands_beside_what_was_published_of_it(tmp_path: Path) -> None:
    run = Fabricated(tmp_path)
    run.begin(["experiment=sppo_mistral_7b"])
    run.evaluate(1, (0.51, 0.48, 0.54))
    run.best_of(1, 16, (0.63, 0.6, 0.66))
    console = Console(record=True, width=160)
    print_report(ArmReport.of(open_run(run.runs, run.name)), console)
    lines = [line for line in console.export_text().splitlines() if "│" in line]
    row = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]] for line in lines}
    assert row["published LC win rate, %"] == ["17.11", "24.79", "26.89", "28.53"]
    assert row["published, best of 16: LC win rate, %"] == ["22.45", "28.71", "31.23", "32.13"]
    assert row["published, best of 16: mean length"] == ["1529", "1901", "2035", "2174"]
    ours = row["ours, held-out win rate, best of n, second judge: vs base"]
    assert ours == ["", "0.630 [0.600, 0.660]", "", ""]


CHANGED = {
    "policy=smollm2-135m": "policy.name=smollm2-135m, sampler.dtype=float32",
    "trainer.lr=1e-6 sampler.k=16": "sampler.k=16, trainer.lr=1e-06",
    "gate=linear repulsion=hinge win_rate=matrix": "gate.name=linear, repulsion.name=hinge, win_rate=matrix",
    "objective=ipo": "objective.name=ipo",
    "adapter=lora": "trainer.lr=5e-06, trainer.adapter.name=lora",
    "prompts=starter trainer.global_batch=4": "prompts.source=starter, trainer.global_batch=4",
    "iterations=1 seed=3 judge=mini hardware.workers=4 trainer.band_every=0": "",
    "sampler=transformers sampler.k=5 sampler.max_tokens=2048 prompts.heldout=64 evaluate.best_of=16": "",
}


@pytest.mark.parametrize("overrides", CHANGED)
def test_where_a_run_is_another_recipe_is_said(overrides: str, tmp_path: Path) -> None:
    run = Fabricated(tmp_path)
    run.begin(["experiment=sppo_mistral_7b", *overrides.split()])
    run.evaluate(1, (0.51, 0.48, 0.54))
    console = Console(record=True, width=400)
    print_report(ArmReport.of(open_run(run.runs, run.name)), console)
    said = [line for line in console.export_text().splitlines() if "differs from the recipe" in line]
    wanted = CHANGED[overrides]
    assert said == ([f"This run differs from the recipe in: {wanted}"] if wanted else [])


def test_without_a_preset_there_is_no_recipe_to_differ_from(tmp_path: Path) -> None:
    run = Fabricated(tmp_path)
    folder = run.runs / run.name
    run.begin(["policy=smollm2-135m"])
    assert recipe.differences(RunHistory.at(folder)) == []
    run.begin(["experiment=sppo", "sampler.k=3"])
    assert recipe.differences(RunHistory.at(folder)) == ["sampler.k=3"]
    run_record.begin(folder, {}, (folder / "config.yaml").read_text(), ["experiment=of_long_ago"], str(run.store), {})
    assert recipe.differences(RunHistory.at(folder)) == []
    assert recipe.differences(RunHistory.at(tmp_path / "nowhere")) == []


def test_no_folder_of_this_machine_is_shown(tmp_path: Path) -> None:
    run = Fabricated(tmp_path)
    run.begin(["experiment=sppo_mistral_7b", f"prompts.dataset={tmp_path / 'mine'}", f"oracle.path={tmp_path}"])
    assert recipe.differences(RunHistory.at(run.runs / run.name)) == ["prompts.dataset=mine"]
    run.begin(["experiment=sppo_mistral_7b", "oracle=ensemble", f"oracle.members.second.path={tmp_path}"])
    assert recipe.differences(RunHistory.at(run.runs / run.name)) == ["oracle.kind=ensemble"]


def test_a_run_without_published_results_has_no_such_table(tmp_path: Path) -> None:
    run = Fabricated(tmp_path)
    run.begin()
    run.evaluate(1, (0.51, 0.48, 0.54))
    console = Console(record=True, width=160)
    print_report(ArmReport.of(open_run(run.runs, run.name)), console)
    assert "published" not in console.export_text()
