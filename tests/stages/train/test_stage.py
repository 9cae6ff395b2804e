"""The whole step on real Ray, Ray Train and DeepSpeed ZeRO-3 over gloo, on a tiny random policy."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparring.pipeline.runs.rules import learned
from sparring.stages.errors import DataError, TrainingFault
from sparring.stages.step import Input
from sparring.stages.train.batch.order import deal
from sparring.stages.train.batch.rows import ResponsePair, load_rows
from sparring.stages.train.files import checkpoint
from sparring.stages.train.files.probe import reload_probe
from sparring.stages.train.steps.train import Trained, run
from tests.artifacts import as_input
from tests.refusals import refused
from tests.settings import changed
from tests.stages.train.rig import (
    PAIRS,
    REWARD,
    TARGETS,
    digests,
    inputs_of,
    kill_at,
    objective,
    settings,
    steps,
    train_job,
)


def probe(made: Trained) -> list[dict[str, Any]]:
    return json.loads(made.files["metrics.jsonl"].read_text().splitlines()[-1])["probe"]


def test_files_and_metrics(undisturbed: Trained, inputs: list[Input]) -> None:
    policy = next(source for source in inputs if source.role == "policy").root
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert undisturbed.files[f"model/{name}"].read_bytes() == (policy / name).read_bytes()
    assert all("first" in str(path.parent) + path.name for path in undisturbed.files.values())
    records = steps(undisturbed)
    assert [record["step"] for record in records] == list(range(1, 13))
    assert {record["pairs"] for record in records} == {2}
    assert records[0]["lr"] > 0 and records[-1]["lr"] > 0
    last = records[-1]  # KL(reference || policy) is the mean of -h: positive where the responses became less likely
    assert last["kl_of_pairs"] == pytest.approx(-(last["h_w"] + last["h_l"]) / 2, abs=1e-9) and last["h_w"] != 0
    assert undisturbed.summary["distance_new"] == records[0]["distance"]
    assert undisturbed.summary["repeated"] == 1 and undisturbed.rows == {"in": PAIRS, "out": PAIRS, "dropped": {}}
    assert undisturbed.stats["tokens"] > 0


def test_the_policy_learned_and_the_folder_shows_it(undisturbed: Trained, inputs: list[Input], tmp_path: Path) -> None:
    summary = undisturbed.summary
    assert summary["changed_fraction"] > 0.99 and summary["noise"] < 1e-3
    rows, _ = load_rows(train_job(tmp_path, inputs))
    in_memory = probe(undisturbed)
    wanted = {record["id"] for record in in_memory}
    published = _fresh(undisturbed.files["model/config.json"].parent, [r for r in rows if r.id in wanted])
    for name in ("h_w", "h_l"):
        reloaded = sum(record[name] for record in published) / len(published)
        assert reloaded == pytest.approx(summary[f"probe_{name}"], abs=1e-2)
    apart = abs(summary["probe_h_w"] - summary["probe_h_l"])
    assert apart > 10 * summary["noise"] and apart > 10 * 1e-2
    assert summary["probe_h_w"] > summary["probe_h_l"]


def _fresh(folder: Path, rows: list[ResponsePair]) -> list[dict[str, Any]]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(reload_probe, folder, rows).result()


@pytest.mark.slow
def test_two_workers_have_the_same_curve(undisturbed: Trained, inputs: list[Input], tmp_path: Path) -> None:
    made = run(train_job(tmp_path, inputs, settings(workers=2)), lambda event: None)
    for ours, theirs in zip(steps(made), steps(undisturbed), strict=True):
        for name in ("loss", "z_w", "z_l", "h_w", "h_l", "distance", "grad_norm", "lr"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_worker_is_restarted_and_the_bytes_are_the_same(
    undisturbed: Trained, inputs: list[Input], tmp_path: Path
) -> None:
    job = train_job(tmp_path, inputs)
    seen, report = kill_at(5)
    made = run(job, report)
    assert digests(made) == digests(undisturbed)  # metrics of every step exactly once among them
    assert len([e for e in seen if e.get("event") == "worker"]) == 2
    assert any("resumed after optimizer step" in e.get("text", "") for e in seen)
    assert len(list(checkpoint.root(job).iterdir())) == 1


def test_a_loss_that_is_not_finite_stops_and_names_step_and_rows(
    ray_started: None, inputs: list[Input], tmp_path: Path
) -> None:
    rows, _ = load_rows(train_job(tmp_path, inputs))
    order, _ = deal([row.length for row in rows], 1, 2, settings().seed)
    broken = rows[order[9]].id  # of the fifth step
    given = [_with_nan_target(source, tmp_path, broken) for source in inputs]
    job = train_job(tmp_path, given, settings(micro_batch=2))  # the other pair of its pass is not named
    seen: list[dict[str, Any]] = []
    with refused(TrainingFault, "loss", "step 5", broken, "step 3", "trainer.lr"):
        run(job, seen.append)
    assert [e["done"] for e in seen if "done" in e] == [1, 2, 3, 4]
    assert len([e for e in seen if e.get("event") == "worker"]) == 1  # not tried again
    kept = checkpoint.latest(job)
    assert kept is not None and kept[1] == 3


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_the_probe_stops_as_well(
    ray_started: None, inputs: list[Input], tmp_path: Path
) -> None:
    rows, _ = load_rows(train_job(tmp_path, inputs))
    broken = max(rows, key=lambda row: row.shared_length).id  # the probe's first
    given = [_with_nan_target(source, tmp_path, broken) for source in inputs]
    seen: list[dict[str, Any]] = []
    with refused(TrainingFault, "loss", "step 1", broken):
        run(train_job(tmp_path, given, settings(micro_batch="auto")), seen.append)
    assert len([e for e in seen if e.get("event") == "worker"]) == 1  # not tried again


def _with_nan_target(source: Input, folder: Path, row_id: str) -> Input:
    if source.role != "targets":
        return source
    tables = []
    for index in range(source.n_parts):
        records = source.table(index).to_pylist()
        tables.append(
            pa.Table.from_pylist(
                [r | ({"target_w": float("nan")} if r["id"] == row_id else {}) for r in records], schema=TARGETS
            )
        )
    return as_input("targets", folder / "targets", tables)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_stops(ray_started: None, inputs: list[Input], tmp_path: Path) -> None:
    job = train_job(tmp_path, inputs, settings(lr=1e30, workers=2, checkpoint_steps=1))
    with refused(TrainingFault, "gradient", "step 2", "row-0", "step 1"):
        run(job, lambda event: None)


def test_heldout_prompts_are_refused_before_anything_starts(inputs: list[Input], tmp_path: Path) -> None:
    ids = next(source for source in inputs if source.role == "reference").table(0, ["id"])["id"].to_pylist()
    wrong = as_input("prompts", tmp_path / "wrong", [pa.table({"id": [ids[1], "z"]})])
    given = [wrong if source.role == "prompts" else source for source in inputs]
    with refused(DataError, "1 held-out", ids[1]):
        run(train_job(tmp_path, given), lambda event: None)


def test_too_few_steps_are_refused_before_anything_starts(inputs: list[Input], tmp_path: Path) -> None:
    with refused(TrainingFault, "23 pairs", "6 steps", "8"):
        run(train_job(tmp_path, inputs, settings(global_batch=4)), lambda event: None)


def test_too_few_steps_without_a_reference_are_refused_as_well(inputs: list[Input], tmp_path: Path) -> None:
    wanted = settings(objective=objective("simpo"), global_batch=4)
    with refused(TrainingFault, "23 pairs", "6 steps", "8"):
        run(train_job(tmp_path, inputs_of(wanted.objective, inputs), wanted), lambda event: None)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("workers", [1, 2])
def test_run_again_resumes_after_the_workers_are_given_up(
    ray_started: None, inputs: list[Input], tmp_path: Path, workers: int
) -> None:
    how = settings(workers=workers, max_failures=0)
    whole = run(train_job(tmp_path / "whole", inputs, how), lambda event: None)
    job = train_job(tmp_path / "killed", inputs, how)
    _, report = kill_at(5, rank=workers - 1)
    with refused(TrainingFault, "failed 1 times", "step "):
        run(job, report)
    (checkpoint.root(job) / "step-000099.first").mkdir()  # what a kill in the middle of writing leaves
    made = run(replace(job, attempt="again"), lambda event: None)
    assert digests(made) == digests(whole)


@pytest.mark.slow
def test_bytes_that_changed_are_an_error_and_not_tried_again(
    ray_started: None, inputs: list[Input], tmp_path: Path
) -> None:
    broken = [_with_wrong_digest(source) if source.role == "targets" else source for source in inputs]
    seen: list[dict[str, Any]] = []
    with refused(DataError, "targets", "changed"):
        run(train_job(tmp_path, broken), seen.append)
    assert len([e for e in seen if e.get("event") == "worker"]) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"gradient_checkpointing": True}, {"micro_batch": 2}])
def test_runtime_changes_rounding_only(
    undisturbed: Trained, inputs: list[Input], tmp_path: Path, how: dict[str, Any]
) -> None:
    made = run(train_job(tmp_path, inputs, settings(**how)), lambda event: None)
    for ours, theirs in zip(steps(made), steps(undisturbed), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "inpo", "simpo"])
def test_other_objectives(ray_started: None, inputs: list[Input], tmp_path: Path, name: str) -> None:
    wanted = settings(objective=objective(name))
    made = run(train_job(tmp_path, inputs_of(wanted.objective, inputs), wanted), lambda event: None)
    summary, records = made.summary, steps(made)
    assert summary["probe_h_w"] - summary["probe_h_l"] > max(0.1, 10 * summary["noise"])
    assert summary["noise"] < 1e-3 and learned(summary)
    assert ("h_w" in records[0]) == wanted.objective.reads_reference
    assert ("saturation" in summary) == ("saturation" in records[0]) == (name == "inpo")
    assert records[-1]["d_w"] != 0 and records[-1]["l_beta"] < records[0]["l_beta"]


@pytest.mark.slow
def test_adamw_in_bfloat16_published_in_bfloat16(ray_started: None, inputs: list[Input], tmp_path: Path) -> None:
    wanted = settings(optimizer="adamw", dtype="bfloat16", publish_dtype="bfloat16", lr=1e-3)
    made = run(train_job(tmp_path, inputs, wanted), lambda event: None)
    assert json.loads(made.files["model/config.json"].read_text())["dtype"] == "bfloat16"
    assert made.summary["probe_h_w"] > made.summary["probe_h_l"]


def _with_wrong_digest(source: Input) -> Input:
    return replace(source, files=tuple(replace(file, sha256="0" * 64) for file in source.files))


def test_worker_output_is_in_a_file(undisturbed: Trained) -> None:
    folder = undisturbed.files["metrics.jsonl"].parents[1]
    assert "DeepSpeed" in (folder / "scratch" / "train.first" / "rank-0.log").read_text()


CALIBRATED = settings(calibration=REWARD, global_batch=4, epochs=2)


@pytest.fixture(scope="module")
def calibrated(ray_started: None, inputs: list[Input], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    job = train_job(tmp_path_factory.mktemp("calibrated"), inputs, changed(CALIBRATED, micro_batch=4))
    return run(job, lambda event: None)


@pytest.mark.slow
def test_two_workers_calibrate_alike(calibrated: Trained, inputs: list[Input], tmp_path: Path) -> None:
    other = run(train_job(tmp_path, inputs, changed(CALIBRATED, workers=2)), lambda event: None)
    deltas, theirs = ([record["delta"] for record in steps(made)] for made in (calibrated, other))
    assert deltas[0] == 1.0 and max(abs(delta - 1) for delta in deltas) > 0.01
    assert theirs == pytest.approx(deltas, rel=1e-5)
    assert calibrated.summary["delta"] == deltas[-1] and calibrated.summary["delta_skipped"] == 0


@pytest.mark.slow
@pytest.mark.faults
def test_running_means_of_the_calibration_survive_a_kill(
    calibrated: Trained, inputs: list[Input], tmp_path: Path
) -> None:
    _, report = kill_at(5)
    killed = run(train_job(tmp_path, inputs, changed(CALIBRATED, micro_batch=4)), report)
    assert digests(killed) == digests(calibrated)  # delta of every step among them


def test_the_band_and_the_gradient_ratio_are_recorded(undisturbed: Trained) -> None:
    for record in steps(undisturbed):
        assert 0 <= record["in_band"] + record["reversed"] + record["rho_negative"] <= 1
        assert record["repulsion_ratio"] > 0 and record["r_star"] > 0
    assert {"in_band", "reversed", "repulsion_ratio"} <= set(undisturbed.summary)
    assert "delta" not in undisturbed.summary


@pytest.mark.slow
def test_measuring_the_band_changes_no_bit_of_the_model(
    undisturbed: Trained, inputs: list[Input], tmp_path: Path
) -> None:
    made = run(train_job(tmp_path, inputs, settings(band_every=5)), lambda event: None)
    assert [record["step"] for record in steps(made) if "in_band" in record] == [1, 6, 11]
    ours, theirs = digests(made), digests(undisturbed)
    assert ours["model/model.safetensors"] == theirs["model/model.safetensors"]
