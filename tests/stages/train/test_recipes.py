"""Every recipe for real: ZeRO-3 on gloo, in processes of their own, on a tiny random policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from sparring.stages.errors import TrainingFault
from sparring.stages.step import Job, sha256_file
from sparring.stages.train.batch.rows import load_rows
from sparring.stages.train.config import Adapter
from sparring.stages.train.files import checkpoint
from sparring.stages.train.files.safetensors_writer import read, tensors_of
from tests.artifacts import as_input
from tests.refusals import refused
from tests.stages.train.ranks import folder, steps, train
from tests.stages.train.rig import reload_probe, settings, train_inputs, train_job
from tests.tiny import tiny_policy

LORA = Adapter(name="lora", rank=4, alpha=8.0, targets=())
QLORA = Adapter(name="qlora", rank=4, alpha=8.0, targets=())
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {"adapter": LORA, "lr": 1e-3},
    "qlora": {"adapter": QLORA, "lr": 1e-3, "dtype": "bfloat16"},
    "adamw_8bit": {"optimizer": "adamw_8bit"},
}


def job_of(where: Path, recipe: str, **how: Any) -> Job:
    four_bit = recipe == "qlora"
    policy = tiny_policy(where / "policy")
    inputs = train_inputs(where / "inputs", policy, four_bit=four_bit)
    return train_job(where, inputs, settings(**{**RECIPES[recipe], **how}))


def by_one_worker(job: Job) -> Job:
    return replace(job, workers=replace(job.workers, count=1))


def probed(made: dict[str, Any], job: Job) -> dict[str, float]:
    """Mean h of the pairs of the worker's own probe, under the published folder."""
    last = json.loads(Path(made["files"]["metrics.jsonl"]).read_text(encoding="utf-8").splitlines()[-1])
    wanted = {record["id"] for record in last["probe"]}
    found = reload_probe(folder(made), [row for row in load_rows(job)[0] if row.id in wanted])
    return {name: sum(row[name] for row in found) / len(found) for name in ("h_w", "h_l")}


def in_memory(made: dict[str, Any]) -> dict[str, float]:
    return {name: made["summary"][f"probe_{name}"] for name in ("h_w", "h_l")}


def check_low_rank(base: Path, published: Path) -> None:
    """What the published weights have beside the base's is of rank 4, in the adapter's layers alone."""
    before, after = tensors_of(base), tensors_of(published)
    assert before.keys() == after.keys()
    for name in before:
        delta = read(after[name], name) - read(before[name], name)
        if ".self_attn." in name or ".mlp." in name:
            spectrum = torch.linalg.svdvals(delta.double())
            assert spectrum[3] > 1e-6 and spectrum[4] < 1e-3 * spectrum[3], name
        else:
            assert not delta.any(), name


def with_shifted_reference(job: Job, nats: float) -> Job:
    """The job with other log-probs as its reference: how many bits rounding leaves of 0 is the processor's affair."""
    reference, names = job.inputs["reference"], ("chosen_logprob", "rejected_logprob")
    tables = [reference.table(i) for i in range(reference.n_parts)]
    rows = [[{**row, **{name: row[name] + nats for name in names}} for row in t.to_pylist()] for t in tables]
    moved = [pa.Table.from_pylist(part, schema=t.schema) for part, t in zip(rows, tables, strict=True)]
    shifted = as_input("reference", job.scratch.parent / "shifted", moved)
    return replace(job, inputs={**job.inputs, "reference": shifted})


def test_lora_trains_and_publishes_a_whole_policy(tmp_path: Path) -> None:
    job = with_shifted_reference(job_of(tmp_path, "lora", gradient_checkpointing=True), 0.25)
    (made,) = train(job)
    summary = made["summary"]
    assert summary["noise"] == pytest.approx(0.25, abs=1e-3), "the mean |h| before the first step"
    assert summary["probe_h_w"] - summary["probe_h_l"] > 0.1
    lines = [json.loads(line) for line in Path(made["files"]["metrics.jsonl"]).read_text(encoding="utf-8").splitlines()]
    assert summary["probe_pairs"] == len(lines[-1]["probe"]) == len(load_rows(job)[0]) == 16
    assert lines[0] == {"noise": summary["noise"]}, "of some of these pairs, before the first step"
    check_low_rank(tmp_path / "policy", folder(made))
    assert probed(made, job) == pytest.approx(in_memory(made), abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_resuming_gives_the_same_bytes(tmp_path: Path, recipe: str) -> None:
    job = job_of(tmp_path, recipe)
    first, again = train(job, ["first", "again"])
    events = (tmp_path / "scratch" / "train.again" / "rank-0.jsonl").read_text()
    assert "resumed after optimizer step 6" in events
    for name, path in first["files"].items():
        assert sha256_file(Path(path)) == sha256_file(Path(again["files"][name])), name
    assert again["summary"]["probe_h_w"] > again["summary"]["probe_h_l"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_workers_have_the_same_curve(tmp_path: Path, recipe: str) -> None:
    (one,) = train(job_of(tmp_path / "one", recipe))
    (two,) = train(job_of(tmp_path / "two", recipe, workers=2))
    for ours, theirs in zip(steps(two), steps(one), strict=True):
        assert ours["pairs"] == theirs["pairs"] == 2
        for name in ("loss", "h_w", "h_l", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name


@pytest.mark.slow
def test_lora_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    two = job_of(tmp_path, "lora", workers=2)
    (first,) = train(two)
    (again,) = train(by_one_worker(two), ["again"])
    assert "resumed after optimizer step 6" in (tmp_path / "scratch" / "train.again" / "rank-0.jsonl").read_text()
    for name in ("h_w", "h_l"):
        assert in_memory(again)[name] == pytest.approx(in_memory(first)[name], abs=1e-3)


@pytest.mark.slow
def test_8_bit_adam_stays_with_its_number_of_workers(tmp_path: Path) -> None:
    """Its blocks of 256 do not end where parts do."""
    two = job_of(tmp_path, "adamw_8bit", workers=2)
    train(two)
    with refused(TrainingFault, "hardware.workers=2"):
        train(by_one_worker(two), ["again"])


@pytest.mark.slow
def test_qlora_starts_at_the_reference_and_its_merged_policy_is_near(tmp_path: Path) -> None:
    """The published weights are the full ones with the same B A, which moves h as it does on the 4-bit base."""
    job = job_of(tmp_path, "qlora", lr=3e-3)  # far above bfloat16's noise: the mean of z is about -60
    (made,) = train(job)
    assert made["summary"]["noise"] < 0.05
    check_low_rank(tmp_path / "policy", folder(made))
    full = train_inputs(tmp_path / "full", tmp_path / "policy")
    shown, trained = probed(made, train_job(tmp_path, full)), in_memory(made)
    apart = trained["h_w"] - trained["h_l"]
    assert apart > 0.4 and shown["h_w"] - shown["h_l"] > 0.25 * apart
    assert shown != pytest.approx(trained, abs=1e-2)  # not the equality of the other recipes


@pytest.mark.slow
def test_states_of_8_bit_adam_take_a_byte(tmp_path: Path) -> None:
    job = job_of(tmp_path, "adamw_8bit")
    train(job)
    kept = checkpoint.latest(job)
    assert kept is not None
    (path,) = kept[0].rglob("*optim_states.pt")
    saved = torch.load(path, weights_only=False)["optimizer_state_dict"]["optimizer_state_dict"]["state"]
    weights, norms = (state["__bnb_optimizer_quant_state__"] for state in saved.values())
    assert weights["state1"].dtype == weights["state2"].dtype == torch.uint8 and weights["state1"].numel() > 3e6
    assert norms["state1"].dtype == torch.float32 and norms["state1"].numel() == 5 * 64  # too small to pay


@pytest.mark.slow
@pytest.mark.parametrize("offload", ["optimizer", "all"])
def test_offload_changes_rounding_only(tmp_path: Path, offload: str) -> None:
    """On the CPU both memories are one: this shows that the paths run, not that a GPU is spared."""
    where = train_inputs(tmp_path / "inputs", tiny_policy(tmp_path / "policy"))
    (plain,) = train(train_job(tmp_path / "plain", where))
    (moved,) = train(train_job(tmp_path / "moved", where, settings(offload=offload)))
    for ours, theirs in zip(steps(moved), steps(plain), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
