"""The whole loop with real engines on a tiny policy: what is shared, kept, reused, verified, what it learned."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparring.pipeline.runs.rules import learned
from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.store.manifest import Artifact, Manifest
from sparring.stages.annotate import winrate
from sparring.stages.step import Input
from sparring.stages.train.config import TRAIN
from tests.faults.harness import DEADLINE_S, Run, contents, overrides

GOLDEN_TRAINING = "322 8 812"
"""First loss, optimizer steps, tokens."""

RELOAD = """
import json, sys
from pathlib import Path
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.files.probe import changes_of_log_prob
from sparring.stages.train.model.scorer import load_scorer
folder, rows = Path(sys.argv[1]), [ResponsePair(**row) for row in json.loads(Path(sys.argv[2]).read_text())]
print(json.dumps(changes_of_log_prob(load_scorer(folder, "float32"), rows)))
"""


def steps_of(folder: Path) -> dict[str, Manifest]:
    """Return label -> manifest of iteration 1."""
    return RunHistory.at(folder / "runs" / "default").steps[1]


def open_run(folder: Path, manifest: Manifest) -> Input:
    """Return an artifact of a run, open."""
    return Artifact(folder / "store", manifest.step, manifest.fingerprint).as_input(manifest.step, manifest)


def copied(undisturbed: Path, folder: Path) -> Path:
    """Copy a finished run to change it."""
    for name in ("store", "runs"):
        shutil.copytree(undisturbed / name, folder / name, symlinks=True)
    shutil.copy(undisturbed / "prompts.jsonl", folder / "prompts.jsonl")
    return folder


def test_every_row_is_accounted_for(undisturbed: Path) -> None:
    for label, manifest in steps_of(undisturbed).items():
        rows = manifest.rows
        assert rows["in"] == rows["out"] + sum(rows["dropped"].values()), label


def test_workers_end_with_their_models_or_serve_the_next_step(undisturbed: Path) -> None:
    """One process annotates, scores the reference and judges; an engine samples for the base too, and ends before
    training.
    """
    events = [json.loads(line) for line in Run(undisturbed, []).events.read_text().splitlines()]
    pids = {e["label"].partition(" ")[2].partition(" ")[2]: e["pid"] for e in events if e["event"] == "worker"}
    assert pids["score"] == pids["embed"] == pids["reference"]
    assert pids["sample"] == pids["sample_base"]
    assert pids["score"] == pids["score_oracle_previous"] == pids["score_second_previous"]
    assert len({pids[name] for name in ("sample", "score", "train", "sample_heldout")}) == 4


def test_a_second_run_does_nothing_in_seconds(undisturbed: Path, policy: Path) -> None:
    """Seconds because nothing heavy is imported: no time is asserted, which a busy machine would fail."""
    before = contents(undisturbed)
    code = (
        "import sys; from sparring.pipeline.cli import main; code = main(['run', *sys.argv[1:]]);"
        "assert not {'ray', 'torch'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *overrides(undisturbed, policy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nothing to do: all 15 steps are hits")
    assert contents(undisturbed) == before


def test_the_published_policy_learned_what_the_trained_one_had(undisturbed: Path, tmp_path: Path) -> None:
    """A fresh process reads the published folder: h as in memory to 1e-2, chosen and rejected apart beyond noise."""
    steps = steps_of(undisturbed)
    train = open_run(undisturbed, steps["train"])
    rows = joined_rows(undisturbed, steps)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(train.folder()), str(tmp_path / "rows.json")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {row["id"]: row for row in json.loads(done.stdout.splitlines()[-1])}
    probe = json.loads(next(p for p in train.root.glob("metrics.*.jsonl")).read_text().splitlines()[-1])["probe"]
    assert len(probe) >= 8
    for name in ("h_w", "h_l"):
        memory = sum(row[name] for row in probe) / len(probe)
        published = sum(found[row["id"]][name] for row in probe) / len(probe)
        assert published == pytest.approx(memory, abs=1e-2)
    apart = abs(sum(found[row["id"]]["h_w"] - found[row["id"]]["h_l"] for row in probe) / len(probe))
    assert apart > 10 * steps["train"].summary["noise"]
    assert learned(steps["train"].summary)
    assert steps["train"].summary["changed_fraction"] > 0.9


def joined_rows(folder: Path, steps: dict[str, Manifest]) -> list[dict[str, Any]]:
    """Return the training pairs as keyword arguments of Row, read from the artifacts."""
    samples, pairs, reference = (open_run(folder, steps[name]) for name in ("sample", "pairs", "reference"))
    rows = []
    for part in range(samples.n_parts):
        by_id = {row["id"]: row for row in samples.table(part).to_pylist()}
        known = {row["id"]: row for row in reference.table(part).to_pylist()}
        for pair in pairs.table(part).to_pylist():
            sample = by_id[pair["id"]]
            rows.append(
                {
                    "id": pair["id"],
                    "prompt": sample["prompt_ids"],
                    "chosen": sample["responses"][pair["chosen"]]["ids"],
                    "rejected": sample["responses"][pair["rejected"]]["ids"],
                    "ref_w": known[pair["id"]]["chosen_logprob"],
                    "ref_l": known[pair["id"]]["rejected_logprob"],
                }
            )
    return rows


def test_held_out_prompts_are_not_trained_on(undisturbed: Path) -> None:
    steps = steps_of(undisturbed)
    ids = {
        label: {
            i for part in open_run(undisturbed, steps[label]).parts for i in _ids(undisturbed, steps[label], part.path)
        }
        for label in ("sample", "sample_heldout")
    }
    assert len(ids["sample"]) == 8 and len(ids["sample_heldout"]) == 4
    assert not ids["sample"] & ids["sample_heldout"]


def _ids(folder: Path, manifest: Manifest, path: str) -> list[str]:
    root = Artifact(folder / "store", manifest.step, manifest.fingerprint).path
    return list(pq.read_table(root / path, columns=["id"]).column("id").to_pylist())


@pytest.mark.slow
def test_a_damaged_shard_is_refused_then_undone_then_redone(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    folder = copied(undisturbed, tmp_path)
    steps = steps_of(folder)
    damaged = open_run(folder, steps["calibrate"]).root / steps["calibrate"].files[0].path
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    damaged.write_bytes(raw)
    Artifact(folder / "store", "train", steps["train"].fingerprint).set_aside()
    done = sparring("run", *overrides(folder, policy))
    assert done.returncode == 2 and "its bytes changed since it was recorded" in done.stderr
    assert damaged.name in done.stderr and "Traceback" not in done.stderr
    checked = sparring("verify", "--store", str(folder / "store"))
    assert checked.returncode == 2 and "sha256 differs" in checked.stdout and "1 corrupt" in checked.stdout
    Run(folder, overrides(folder, policy)).finish()
    assert contents(folder) == contents(undisturbed)


def sparring(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line and return what it said."""
    command = [sys.executable, "-m", "sparring", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_status_of_a_finished_run(undisturbed: Path) -> None:
    done = sparring("status", "default", "--why", "--runs", str(undisturbed / "runs"))
    assert done.returncode == 0, done.stderr
    assert "15 steps, 0 to do" in done.stdout and done.stdout.count(" hit ") == 15


def test_the_report_is_printed_from_manifests(undisturbed: Path) -> None:
    done = sparring("report", "default", "--runs", str(undisturbed / "runs"))
    assert done.returncode == 0, done.stderr
    for row in ("pairs kept", "|P̃-P|, mean", "oracle: vs base", "second judge: vs previous", "seconds: train"):
        assert row in done.stdout
    assert "KL to the base, nats" in done.stdout and "best of n" not in done.stdout
    assert "oracle (mini): accuracy" in done.stdout


def test_best_of_n_comes_to_a_run_that_is_finished(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    """Its eight steps alone are made; what was chosen is the argmax of the win rate, judged beside one response."""
    folder = copied(undisturbed, tmp_path)
    Run(folder, overrides(folder, policy, "evaluate.best_of=3")).finish()
    before, after = contents(undisturbed), contents(folder)
    assert before.items() <= after.items() and len(after) == len(before) + 8
    steps = steps_of(folder)
    chosen, samples = (open_run(folder, steps[label]) for label in ("best", "sample_best"))
    scores = open_run(folder, steps["score_best"]).table(0).to_pylist()
    for best, sample, score in zip(chosen.table(0).to_pylist(), samples.table(0).to_pylist(), scores, strict=True):
        logits, swapped = (np.reshape(score[name], (3, 3)) for name in ("logits", "swapped"))
        rates = winrate.win_rates(winrate.preference_matrix((logits - swapped) / 2))
        assert len(sample["responses"]) == 3 and best["id"] == sample["id"] == score["id"]
        assert best["responses"] == [sample["responses"][winrate.best(rates)]]
    compared = {(row["judge"], row["opponent"]): row for row in steps["evaluate_best"].summary["comparisons"]}
    assert set(compared) == {(judge, foe) for judge in ("oracle", "second") for foe in ("single", "base")}
    assert all(row["n"] == 4 for row in compared.values()) and compared["oracle", "single"]["win_rate"] >= 0.5
    done = sparring("report", "default", "--runs", str(folder / "runs"))
    assert "best of n, second judge: vs base" in done.stdout, done.stderr


@pytest.mark.slow
def test_two_runs_of_one_plan_at_once(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    """The second waits for the first where they need the same step, says so, and adopts."""
    folder = copied(undisturbed, tmp_path)
    steps = steps_of(folder)
    for name in ("embed", "reference"):
        Artifact(folder / "store", name, steps[name].fingerprint).set_aside()
    first, second = (Run(folder, overrides(folder, policy, f"run.name={name}")) for name in ("one", "two"))
    started = [first.start(), second.start()]
    assert [process.wait(DEADLINE_S) for process in started] == [0, 0], (folder / "driver.log").read_text()[-3000:]
    log = (folder / "driver.log").read_text()
    assert "is being made by run" in log and "waiting to adopt it" in log
    for name in ("embed", "reference"):
        manifest = Artifact(folder / "store", name, steps[name].fingerprint).manifest()
        assert manifest is not None and manifest.content == steps[name].content and len(manifest.attempts) == 1


def test_golden_training(undisturbed: Path) -> None:
    """As tests/test_golden.py, for what training makes of the run of these tests."""
    summary = steps_of(undisturbed)["train"].summary
    assert TRAIN.version == 5
    assert f"{summary['first_loss']:.3g} {summary['steps']} {summary['tokens']}" == GOLDEN_TRAINING


@pytest.mark.slow
def test_more_iterations_keep_the_first(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    folder = copied(undisturbed, tmp_path)
    Run(folder, overrides(folder, policy, "iterations=3")).finish()
    before, after = contents(undisturbed), contents(folder)
    assert before.items() <= after.items()
    assert {"02/train", "03/train", "03/evaluate"} <= set(after)
    made = [json.loads(line) for line in (folder / "runs" / "default" / "events.jsonl").read_text().splitlines()]
    again = {e["label"] for e in made if e["event"] == "step_done" and e["label"].startswith("iteration 1 ")}
    assert len(again) == len({label for label in before if label.startswith("01/")}) - 2  # done once, by the first run


@pytest.mark.slow
def test_arms_share_their_steps(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    folder = copied(undisturbed, tmp_path)
    arguments = overrides(folder, policy, "run.name=arms", "experiment=sppo,s_sppo")
    done = sparring("run", "-m", *arguments)
    assert done.returncode == 0, done.stderr
    books = {p.parent.name: json.loads(p.read_text())["steps"]["01"] for p in (folder / "runs/arms").glob("*/run.json")}
    assert set(books) == {"experiment=sppo", "experiment=s_sppo"}
    plain, gated = books["experiment=sppo"], books["experiment=s_sppo"]
    assert plain["pairs"] == gated["pairs"] and plain["train"] != gated["train"]
    assert gated["train"]["content"] == contents(undisturbed)["01/train"]


@pytest.mark.slow
def test_joins_a_running_cluster(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    """With RAY_ADDRESS the driver starts nothing of its own; a wrong address is one message."""
    folder = copied(undisturbed, tmp_path)
    port = free_port()
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    command[0] = str(Path(sys.executable).with_name("ray"))
    cluster = subprocess.Popen(
        [*command, "--include-dashboard=false", "--disable-usage-stats"],
        stdout=(tmp_path / "ray.log").open("w"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )
    try:
        wait_for_port(port)
        Artifact(folder / "store", "embed", steps_of(folder)["embed"].fingerprint).set_aside()
        done = sparring("run", *overrides(folder, policy), RAY_ADDRESS=f"127.0.0.1:{port}", RAY_AUTH_MODE="disabled")
        assert done.returncode == 0, done.stderr
        assert "joining the Ray cluster" in done.stderr and "starting Ray" not in done.stderr
        assert contents(folder) == contents(undisturbed)
    finally:
        cluster.terminate()
        cluster.wait(60)


def test_a_cluster_that_is_not_there(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    folder = copied(undisturbed, tmp_path)
    Artifact(folder / "store", "pairs", steps_of(folder)["pairs"].fingerprint).set_aside()
    done = sparring("run", *overrides(folder, policy), RAY_ADDRESS=f"127.0.0.1:{free_port()}")
    assert done.returncode == 2 and "RAY_ADDRESS" in done.stderr and "Traceback" not in done.stderr


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the cluster did not start")


@pytest.mark.slow
def test_sampling_with_vllm_gives_the_same_layout(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    folder = copied(undisturbed, tmp_path)
    Run(
        folder,
        overrides(folder, policy, "sampler=vllm", "sampler.k=2", "sampler.max_tokens=8", "sampler.shard_rows=4"),
    ).finish()
    ours, theirs = (open_run(f, steps_of(f)["sample"]) for f in (folder, undisturbed))
    assert ours.digest != theirs.digest
    assert ours.table(0).schema.equals(theirs.table(0).schema)


@pytest.mark.slow
def test_two_engines_and_two_workers_change_no_sample(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    """Equal bytes for any number of actors with as many threads each; the whole loop with two training workers."""
    folder = copied(undisturbed, tmp_path)
    shutil.rmtree(folder / "store")
    more = [
        "hardware.engines=2",
        "hardware.annotators=2",
        "hardware.workers=2",
        "trainer.global_batch=2",
        "trainer.epochs=2",
    ]
    Run(folder, overrides(folder, policy, *more)).finish()
    before, after = contents(undisturbed), contents(folder)
    assert all(
        after[f"01/{label}"] == before[f"01/{label}"] for label in ("sample", "score", "embed", "pairs", "reference")
    )


@pytest.mark.slow
def test_a_dataset_of_the_hubs_layout_in_thirds(tmp_path: Path, policy: Path) -> None:
    """Slices of their own size, the same shards whatever the run's other steps; held-out prompts stay out."""
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    texts = [f"Tell me {i} things about the number {i}, please." for i in range(31)]
    pq.write_table(pa.table({"prompt": texts}), folder / "data" / "train-00000-of-00001.parquet")
    chosen = ["prompts=hub", f"prompts.dataset={folder}", "prompts.per_iteration=null", "prompts.slices=3"]
    Run(tmp_path, [one for one in overrides(tmp_path, policy, *chosen) if "prompts.path" not in one]).finish()
    prompts = RunHistory.at(tmp_path / "runs" / "default").steps[0]["prompts"]
    sample = steps_of(tmp_path)["sample"]
    assert prompts.summary["train"] == 27 and sample.rows["out"] == 9
    held = set(open_run(tmp_path, prompts).table(0)["id"].to_pylist())
    samples = open_run(tmp_path, sample)
    played = {name for i in range(samples.n_parts) for name in samples.table(i)["id"].to_pylist()}
    assert len(held) == 4 and len(played) == 9 and not held & played
