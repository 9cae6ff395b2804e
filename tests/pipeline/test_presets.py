"""Presets: the published recipes load on any hardware, their results are the published ones, the report prints them."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from pipeline import config, estimate
from pipeline.build import build
from pipeline.cli import main
from pipeline.errors import ConfigError
from pipeline.report.table import print_report
from pipeline.sources import Sources
from tests.pipeline.export.fabricated import Fabricated
from tests.pipeline.test_plan import labels, plan_of

PUBLISHED = {
    "sppo_mistral_7b": "17.11/14.72/1676 24.79/23.51/1855 26.89/27.62/2019 28.53/31.02/2163",
    "sppo_llama3_8b": "22.92/22.57/1899 31.73/31.74/1962 35.15/35.98/2021 38.77/39.85/2066",
    "sppo_gemma2_9b": "45.08/35.62/None 48.70/40.76/1669 50.93/44.64/1759 53.27/47.74/1803",
    "s_sppo_llama3_8b": "22.92/22.57/1899 47.46/52.19/None",
    "dpo_iterative_mistral_7b": "17.11/14.72/1676 23.81/20.44/1723 24.23/24.46/2028 22.30/23.39/2189",
}
BASES = {"mistral": "mistral-7b-instruct-v0.2", "llama3": "llama-3-8b-instruct", "gemma2": "gemma-2-9b-it"}


@pytest.mark.parametrize("hardware", ["cpu", "h100x8"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_recipe_with_its_results(name: str, hardware: str) -> None:
    found = config.load([f"experiment={name}", f"hardware={hardware}"])
    assert found.policy.name == next(base for part, base in BASES.items() if part in name)
    assert (found.iterations, found.sampler.k, found.sampler.max_tokens, found.oracle.kind) == (3, 5, 2048, "pairrm")
    assert (found.sampler.temperature, found.sampler.top_p) == (0.7, 0.9)
    assert (found.trainer.lr, found.trainer.global_batch, found.prompts.slices) == (5e-7, 64, 3)
    assert found.objective.name == ("dpo" if name.startswith("dpo") else "sppo")
    gated = name.startswith("s_sppo")
    assert (found.gate.name, found.repulsion.name) == (("linear", "hinge") if gated else ("off", "off"))
    assert found.win_rate == ("matrix" if gated else "aggregate_score")
    assert found.published is not None and found.published.benchmark == "AlpacaEval 2.0"
    assert " ".join(f"{r.lc:.2f}/{r.wr:.2f}/{r.length}" for r in found.published.rows) == PUBLISHED[name]
    assert [row.iteration for row in found.published.rows] == ([0, None] if gated else [0, 1, 2, 3])


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
    with pytest.raises(ConfigError, match=r"published\.rows\.0\.lc"):
        config.load(["experiment=sppo_mistral_7b", "published.rows=[{iteration: 0, lc: much, wr: 1, length: 2}]"])


def test_a_plan_without_the_hub_says_so_and_has_a_bill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=sppo_mistral_7b", "hardware=h100x8", "hardware.usd_per_hour=24", f"paths.store={tmp_path}"]
    assert main(["plan", *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "51 steps, 51 to do" in out and "GPU-hours on 8 GPUs, $" in out and "at $24 an hour" in out
    assert "rates of hardware=h100x8: estimated, not measured" in out
    assert "to be downloaded, and not in these figures:" in out and "mistralai/Mistral-7B-Instruct-v0.2" in out
    assert "since the hub was not heard: dataset UCLA-AGI/data-mistral-7b-instruct-sppo-iter1" in out


def test_without_a_price_there_are_hours_alone() -> None:
    whole = estimate.Cost(tokens=0, seconds=3600, kept_bytes=0, peak_bytes=0, reckoned=True)
    assert estimate.bill(config.load(["hardware=cpu"]), whole) is None
    eight = config.load(["hardware=h100x8", "experiment=sppo_mistral_7b"])
    text = "8.0 GPU-hours on 8 GPUs (rates of hardware=h100x8: estimated, not measured)"
    assert eight.hardware.gpus == 8 and estimate.bill(eight, whole) == text


def test_what_works_side_by_side_counts_and_so_do_the_oracles_duels() -> None:
    words = ["experiment=sppo_mistral_7b", "prompts=file", "prompts.path=p.jsonl", "prompts.per_iteration=800"]
    costs = {}
    for engines in (1, 8):
        chosen = config.load(
            [*words, "hardware=h100x8", f"hardware.engines={engines}", f"hardware.annotators={engines}"]
        )
        plan = build({"": chosen}, _Anywhere())
        by_label = {step.uses[0].label: step for step in plan.steps.values() if step.uses[0].iteration == 1}
        costs[engines] = {label: estimate.cost(step, plan, []) for label, step in by_label.items()}
    mistral = 7_241_732_096 / 8e9  # of the size that the rates are of
    for label, units in (("sample", 800 * 5 * 512 / 6000 * mistral), ("score", 800 * 20 / 25)):
        one, eight = (costs[n][label].seconds - 90 for n in (1, 8))
        assert one == pytest.approx(units) and eight == pytest.approx(units / 8)


class _Anywhere(Sources):
    """Names alone: nothing of them is read."""

    def __init__(self) -> None:
        super().__init__(assume=True)

    def prompts(self, config: object) -> dict[str, object]:  # type: ignore[override]
        from pipeline.job import Input

        return {"source": Input(role="source", root=Path(), digest="5" * 64)}


def test_the_report_prints_what_was_published_beside_ours(tmp_path: Path) -> None:
    run = Fabricated(tmp_path)
    run.begin(["experiment=s_sppo_llama3_8b"])
    run.evaluate(1, (0.51, 0.48, 0.54))
    console = Console(record=True, width=160)
    print_report(run.runs / run.name, run.store, console)
    lines = console.export_text().splitlines()
    row = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]] for line in lines if "│" in line
    }
    assert any("published (arXiv 2606.01561): AlpacaEval 2.0" in line for line in lines)
    assert row["published LC win rate, %"] == ["22.92", "", "47.46"]
    assert row["published mean length"] == ["1899", "", ""]
    assert row["ours, held-out win rate, second judge: vs base"] == ["", "0.510 [0.480, 0.540]", ""]
    assert any("are another evaluation" in line for line in lines) and any("not stated" in line for line in lines)


def test_a_run_without_published_results_has_no_such_table(tmp_path: Path) -> None:
    run = Fabricated(tmp_path)
    run.begin()
    run.evaluate(1, (0.51, 0.48, 0.54))
    console = Console(record=True, width=160)
    print_report(run.runs / run.name, run.store, console)
    assert "published" not in console.export_text()
