"""`sparring profile`: rates out of a step's events, the profile that they make, and the report of planned and spent."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparring.pipeline import config
from sparring.pipeline.cli import main, profile
from sparring.pipeline.cli.profile import Measured
from sparring.pipeline.report.cost import cost_of
from sparring.pipeline.report.data import ArmReport
from sparring.pipeline.report.terminal import print_minutes
from sparring.pipeline.runs import run_record
from sparring.pipeline.runs.run_history import open_run
from sparring.stages.errors import ConfigError, DataError
from tests.pipeline.plans import plan_of
from tests.pipeline.report.fabricated import Run
from tests.refusals import refused
from tests.tiny import tiny_policy

FOUND = {
    "sample": Measured(per_s=100.0, start_s=10.0),
    "score": Measured(per_s=900.0, start_s=4.0),
    "embed": Measured(per_s=30.0, start_s=4.0),
    "reference": Measured(per_s=400.0, start_s=8.0),
    "train": Measured(per_s=50.0, start_s=14.0),
}


def test_the_rate_of_shards_is_over_the_seconds_since_the_models_were_loaded() -> None:
    events = [
        {"event": "step_started", "time": 1000.0},
        {"event": "shard", "time": 1020.0, "busy_s": 5.0},
        {"event": "shard", "time": 1025.0, "busy_s": 10.0},
        {"event": "step_done", "time": 1026.0},
    ]
    assert profile.measured(events, 800.0) == Measured(per_s=80.0, start_s=16.0)


def test_the_rate_of_a_training_is_that_of_the_steps_after_the_first() -> None:
    events: list[dict[str, Any]] = [
        {"event": "step_started", "time": 0.0},
        {"event": "train_step", "time": 1.0},  # before any is done
        *({"event": "train_step", "time": 20.0 + 5 * done, "done": done, "of": 4} for done in (1, 2, 4)),
        {"event": "step_done", "time": 45.0},
    ]
    assert profile.measured(events, 400.0) == Measured(per_s=20.0, start_s=25.0)  # 100 tokens in 5 s


def test_one_optimizer_step_has_no_rate() -> None:
    step = {"event": "train_step", "time": 20.0, "done": 1, "of": 1, "step": "train-1f2e3d4c"}
    with refused(DataError, "train-1f2e3d4c", "--prompts"):
        profile.measured([{"event": "step_started", "time": 0.0}, step, {"event": "step_done", "time": 45.0}], 100.0)


def test_a_measured_profile_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hardware").mkdir()
    plan = plan_of()
    (tmp_path / "hardware/mine.yaml").write_text(profile.text_of("mine", plan.configs[""].hardware, plan, FOUND, ()))
    loaded = config.load(["hardware=mine", "hardware.micro_batch=4"]).hardware
    assert (loaded.name, loaded.micro_batch, loaded.engine_gpus) == ("mine", 4, 0)
    expect = loaded.expect
    assert (expect.sample_tokens_per_s, expect.train_tokens_per_s, expect.start_s) == (100.0, 50.0, 8.0)
    assert expect.score_duels_per_s is None  # the embedded oracle's is nobody else's
    assert expect.basis.startswith("measured 20") and expect.parameters == 134_515_008
    with refused(ConfigError, "hardware=min", "mine", "h100x8"):
        config.load(["hardware=min"])


@pytest.mark.parametrize("name", ["cpu", "a/b", "", "../x"])
def test_a_profile_has_a_name_of_its_own(name: str) -> None:
    with refused(ConfigError, f"profile {name}"):
        profile.profile(name, [])


def test_the_smaller_run_keeps_slices_and_fills_the_engines() -> None:
    plain = profile.smaller(config.load(["hardware=cpu"]), 16)
    assert (plain.prompts.per_iteration, plain.prompts.limit, plain.trainer.min_steps) == (16, 16, 1)
    split = config.load(["hardware=h100x8", "experiment=sppo_llama3_8b"])
    assert profile.prompts_for(split) == 8 * 256
    sliced = profile.smaller(split, 2048).prompts
    assert (sliced.slices, sliced.per_iteration, sliced.limit) == (3, None, 3 * 2048)


def test_the_report_prints_planned_beside_spent(tmp_path: Path) -> None:
    run = Run(tmp_path)
    planned = {(1, "sample"): 120.0, (1, "train"): 300.0, (2, "sample"): 60.0}
    run_record.begin(run.folder, {}, "", [], str(run.store), {}, planned)
    made = {(t, label): run.add(t, label, seconds=1.0) for t, label in planned}
    names = {key: one.fingerprint for key, one in made.items()}
    run_record.begin(run.folder, names, "", [], str(run.store), {}, planned)
    run.add(1, "score", seconds=1.0)  # of another run: this one has no events of it
    events = [
        {"event": event, "step": made[key].name, "time": 1000.0 + second}
        for key, begun, ended in (((1, "sample"), 0, 90), ((1, "train"), 100, 500), ((2, "sample"), 600, 630))
        for event, second in (("step_started", begun), ("step_done", ended))
    ]
    (run.folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"time": 1')
    history = open_run(tmp_path / "runs", "mine")
    cost = cost_of(history)
    assert cost is not None
    assert cost.minutes() == [["sample", "3.0", "2.0"], ["train", "5.0", "6.7"], ["all", "8.0", "8.7"]]
    assert cost.table()[0][2:4] == ["planned s", "spent s"] and cost.total["spent s"] == 520.0
    console = Console(file=StringIO(), width=80)
    print_minutes(ArmReport.of(history), console)
    assert "planned" in (printed := console.file.getvalue()) and "8.7" in printed  # type: ignore[attr-defined]


def test_a_later_plan_keeps_what_was_planned_of_steps_that_are_made(tmp_path: Path) -> None:
    for planned in ({(1, "sample"): 120.0}, {(2, "sample"): 60.0}):
        run_record.begin(tmp_path, {(1, "sample"): "ab" * 32}, "", [], "store", {}, planned)
    assert run_record.read(tmp_path).planned_s == {1: {"sample": 120.0}, 2: {"sample": 60.0}}


@pytest.mark.slow
def test_a_real_profile_has_every_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tiny policy, through Ray and the real steps."""
    from tests.faults.harness import overrides, write_prompts

    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "prompts.jsonl", 40)
    words = overrides(tmp_path, tiny_policy(tmp_path / "policy"))
    assert main(["profile", "mine", *words, "--prompts", "16"]) == 0
    expect = config.load(["hardware=mine"]).hardware.expect
    rates = (expect.sample_tokens_per_s, expect.embed_responses_per_s, expect.reference_tokens_per_s)
    assert all(rate and rate > 0 for rate in (*rates, expect.train_tokens_per_s, expect.start_s))
    assert not (tmp_path / "runs/profile-mine").exists()
