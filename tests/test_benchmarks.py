"""The benchmarks run at a tiny size and write the rows they promise, no time asserted; and what they reckon with."""

import importlib
import json
import math
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from sparring.pipeline.planning.estimate import weights_in_files
from sparring.pipeline.store.files import external
from sparring.pipeline.store.manifest import Artifact, Manifest, publish
from sparring.stages.annotate import winrate
from sparring.stages.errors import DataError
from sparring.stages.train.batch.rows import ResponsePair, ends_of_turn
from sparring.stages.train.model.scorer import load_scorer
from tests.artifacts import as_input
from tests.refusals import refused
from tests.stages.train.rig import sampled, targets_of
from tests.tiny import tiny_policy

ROOT = Path(__file__).parents[1]


def bench(tmp_path: Path, script: str, *options: str) -> tuple[list[dict[str, Any]], str]:
    rows = tmp_path / "rows.json"
    command = [sys.executable, "-m", f"benchmarks.{script}", "--json", str(rows), *options]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(rows.read_text())
    assert all(row.keys() >= {"case", "metric", "value", "unit", "baseline", "ratio", "aim"} for row in found)
    assert "cores" in done.stdout
    return found, done.stdout


@pytest.fixture
def part() -> Any:
    """Import a module of benchmarks/ by name."""
    return lambda name: importlib.import_module(f"benchmarks.{name}")


SMOKE = [("sample", part) for part in ("speed", "bookkeeping", "start")]
SMOKE += [("annotate", part) for part in ("speed", "precision", "embed", "passes", "memory")]
SMOKE += [("train", part) for part in ("parity", "speed", "prompts", "repulsion", "band", "calibration")]
SMOKE += [("gpu", part) for part in ("sampling", "pairrm", "training")]


def test_every_part_has_a_smoke_test(part: Any) -> None:
    found = [(name, one) for name in ("sample", "annotate") for one in part(name).PARTS]
    found += [("train", one) for one in part("_train_rounds").PARTS]
    assert [*found, *(("gpu", one) for one in part("gpu").PARTS)] == SMOKE


@pytest.mark.parametrize(
    ("script", "name"), [pytest.param(*one, marks=() if one[1] == "start" else pytest.mark.slow) for one in SMOKE]
)
def test_smallest_size(tmp_path: Path, script: str, name: str) -> None:
    found, _ = bench(tmp_path, script, "--smallest", "--only", name)
    assert found and all(row["value"] >= 0 for row in found)


def test_rows_of_a_part_outlive_another_that_fails(
    part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.json"

    def good(folder: Path) -> list[Any]:
        return [part("_table").Row("case", str(folder.is_dir()), 1.0, "s")]

    def bad(folder: Path) -> list[Any]:
        assert json.loads(rows.read_text())[0]["metric"] == "True"  # written before the next part begins
        part("_process").answer_of("_start", ["no-such-job", "0"], folder / "child.log")
        raise AssertionError("the child has failed")

    assert part("_parts").run_parts("sampling", {"one": good, "two": bad, "three": good}, rows) == 1
    said = capsys.readouterr()
    assert said.out.count("cores") == 2 and len(json.loads(rows.read_text())) == 2
    assert "the part two failed" in said.err and "No such file or directory: 'no-such-job'" in said.err
    log = tmp_path / "benchmark-sampling-two.log"
    assert str(log) in said.err and "Traceback" in log.read_text()


def test_without_a_gpu_it_says_so(
    part: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu"])
    monkeypatch.setattr("sparring.pipeline.execution.ray_cluster.gpu_count", lambda: 0)
    assert part("gpu").main() == 2 and "--smallest" in capsys.readouterr().err


def test_gpu_rows_are_a_table_in_markdown(part: Any) -> None:
    row = part("_table").Row("8b", "sampled", 12345.678, "tokens/s", "estimated", 0.5, 45.0)
    head, *table = part("gpu").markdown([row]).splitlines()
    assert "no GPU" in head and table[-1] == "| 8b | sampled | 12346 tokens/s | estimated | 0.50 | 45 |"


def test_the_arithmetic_of_a_random_policy_counts_its_weights(part: Any, tmp_path: Path) -> None:
    policy = part("_random_policy").random_policy("tiny", tmp_path / "policy")
    assert part("gpu").architecture("tiny").weights == pytest.approx(
        weights_in_files(external("policy", policy, lambda path: "")),
        rel=1e-3,  # norms
    )


@pytest.mark.slow
def test_a_driver_of_a_step_that_does_nothing(tmp_path: Path) -> None:
    found, _ = bench(tmp_path, "scale", "--smallest")
    delays = {row["case"]: row["value"] for row in found if row["metric"] == "delay per shard"}
    assert len(delays) == 3 and [case for case in delays if "EXTRAPOLATED" in case] == list(delays)[2:]


@pytest.mark.slow
def test_bookkeeping_of_sampling(tmp_path: Path) -> None:
    found, _ = bench(tmp_path, "sample", "--only", "bookkeeping", "--prompts-at-scale", "600")
    assert {500, 60, 10} <= {row["aim"] for row in found if row["aim"] is not None}
    assert all("stand-in" in row["case"] for row in found)


@pytest.mark.slow
def test_memory_of_annotation(tmp_path: Path) -> None:
    found, _ = bench(tmp_path, "annotate", "--only", "memory", "--prompts-at-scale", "600", "--k", "3")
    assert all("stand-in" in row["case"] for row in found)
    values = {row["metric"]: row["value"] for row in found}
    assert min(values["driver's memory, peak over its start"], values["a worker's memory, peak"]) > 0
    assert {"of it score", "of it embed", "of it pairs", "of it calibrate"} <= values.keys()


@pytest.mark.slow
def test_rounds_of_annotation(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    row = {"prompt": "Why is the sky blue?", "chosen": "Air scatters blue light most.", "rejected": "It is the sea."}
    texts.write_text(json.dumps(row) + "\n")
    size = ("--texts", str(texts), "--prompts", "1", "--k", "2", "--rounds", "1")
    found, printed = bench(tmp_path, "annotate", "--only", "speed", *size)
    assert {row["aim"] for row in found if row["ratio"] is not None} == {1.3, 1.2, None}
    ours, theirs = (next(r["value"] for r in found if r["metric"] == way) for way in ("ours", "llm-blender, batch 1"))
    assert next(row["ratio"] for row in found if row["aim"] == 1.3) == pytest.approx(ours / theirs)
    apart = next(row for row in found if row["metric"].startswith("scores apart"))
    assert "of 1 prompts" in apart["metric"] and apart["value"] < 100  # millionths
    assert "texts.jsonl" in printed


@pytest.mark.slow
def test_games(tmp_path: Path) -> None:
    found, _ = bench(tmp_path, "game", "--rounds", "8", "--plot", str(tmp_path / "game.png"))
    assert all(row["ratio"] < row["aim"] for row in found if row["aim"]) and sum(row["aim"] == 1 for row in found) == 6
    assert (tmp_path / "game.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options that name the folders of a run, its store and its policy: 16 pairs of a tiny policy."""
    folder = tmp_path_factory.mktemp("finished")
    policy = tiny_policy(folder / "policy")
    samples = sampled(16)
    steps = {}
    for kind, tables in (("sample", samples), ("pairs", [targets_of(table) for table in samples])):
        artifact = Artifact(folder / "store", kind, sha256(kind.encode()).hexdigest())
        manifest = Manifest(
            fingerprint=artifact.fingerprint,
            step=kind,
            version=1,
            identity={},
            inputs={"policy": {"name": "", "digest": external("policy", policy).digest}},
            files=as_input(kind, artifact.path, tables).files,
            rows={},
            summary={},
            seconds=0.0,
            stats={},
            attempts=["test"],
            made_with={},
        )
        publish(artifact, manifest)
        steps[kind] = {"fingerprint": artifact.fingerprint}
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text(json.dumps({"steps": {"01": steps}}))
    return tuple(part for name in ("run", "store", "policy") for part in (f"--{name}", str(folder / name)))


@pytest.mark.slow
def test_training_beside_trl(tmp_path: Path, finished_run: tuple[str, ...]) -> None:
    size = ("--pairs", "16", "--rounds", "2", "--batches", "4")
    found, _ = bench(tmp_path, "train", *finished_run, *size, "--only", "speed")
    values = {(row["case"], row["metric"], row["baseline"]): row for row in found}
    case = found[0]["case"]
    assert case.startswith("16 pairs, ")
    best = "TRL, best (batch 4)"
    for baseline, aim in (("TRL, defaults", 1.5), (best, 1.2)):
        ours = values[case, "ours", baseline]
        assert (ours["unit"], ours["aim"]) == ("tokens/s", aim)
        memory = values[case, "ours: peak memory", baseline]
        assert memory["aim"] == 0.7 and memory["value"] / memory["ratio"] == pytest.approx(
            values[case, f"{baseline}: peak memory", None]["value"]
        )
    for name in ("TRL, defaults", best, "ours"):
        step = values[case, f"{name}: an optimizer step", None]["value"]
        parts = ("data", "forward", "backward", "optimizer", "other")
        assert sum(values[case, f"{name}: {part}", None]["value"] for part in parts) == pytest.approx(step, rel=0.2)
    shares = [values[case, f"{name}: tokens computed for those served", None]["value"] for name in (best, "ours")]
    assert shares[0] > 100 > shares[1]
    assert values[case, "TRL, defaults: of it the reference's", None]["value"] > 0


@pytest.mark.slow
def test_adapters_beside_trl(tmp_path: Path, finished_run: tuple[str, ...]) -> None:
    size = ("--pairs", "16", "--rounds", "1", "--batches", "4", "--adapter", "lora")
    found, _ = bench(tmp_path, "train", *finished_run, *size, "--only", "speed")
    assert found[0]["case"].startswith("lora, 16 pairs, ")
    assert {row["aim"] for row in found if row["unit"] == "tokens/s"} == {None, 1.5, 1.2}


@pytest.mark.slow
def test_losses_of_training_are_trls(tmp_path: Path, finished_run: tuple[str, ...]) -> None:
    found, _ = bench(tmp_path, "train", *finished_run, "--pairs", "8", "--only", "parity")
    apart = [row for row in found if row["aim"] == 1000]
    assert len(apart) == 3 and all(row["value"] < 1000 for row in apart)
    moved = next(row["value"] for row in found if "move the loss" in row["metric"])
    assert moved > 1000


@pytest.mark.slow
@pytest.mark.parametrize("part", ["prompts", "repulsion", "band", "calibration"])
def test_what_training_costs(tmp_path: Path, finished_run: tuple[str, ...], part: str) -> None:
    found, _ = bench(tmp_path, "train", *finished_run, "--pairs", "8", "--rounds", "1", "--only", part)
    speeds = [row for row in found if row["unit"] == "tokens/s"]
    assert [row["baseline"] for row in speeds] == [None, speeds[0]["metric"]]
    assert speeds[0]["metric"].startswith("ours") and speeds[1]["metric"] != speeds[0]["metric"]


def test_training_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.train", "--run", str(tmp_path), "--policy", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "`make iter N=1`" in done.stderr


def test_where_a_step_goes(part: Any) -> None:
    rounds = part("_train_rounds")
    split = {"data": 2.0, "forward": 20.0, "of it the reference's": 8.0, "backward": 40.0, "optimizer": 6.0}
    answers = [{"seconds": seconds, "parts": split} for seconds in (70.0, 72.0, 90.0)]
    found = {row.metric: row.value for row in rounds.split_rows("case", "it", answers, steps=4)}
    assert found["it: an optimizer step"] == 18.0
    assert found["it: other"] == 1.0  # 72 - (2 + 20 + 40 + 6) = 4 s in 4 steps; the reference is inside the forward
    assert found["it: of it the reference's"] == 2.0


@pytest.mark.parametrize(("adapter", "each"), [("off", 6), ("lora", 4)])
def test_model_flops_by_hand(part: Any, tmp_path: Path, adapter: str, each: int) -> None:
    """In a second, 10 weights at each of 7 tokens, and a head of 100 at the 5 tokens of responses."""
    rounds = part("_train_rounds")
    rows = [ResponsePair(id="a", prompt=[1, 2], chosen=[3, 4], rejected=[5, 6, 7])]
    pairs = part("_train_pairs").Pairs(policy=tmp_path, rows=rows, samples=as_input("samples", tmp_path, []))
    told = {rounds.DEFAULTS: [{"trunk": 10, "head": 100}], rounds.OURS: [{"seconds": 1.0, "computed": 7}]}
    (row,) = rounds.mfu_rows("case", told, adapter, pairs)
    assert row.value == pytest.approx(100 * each * (70 + 500) / 989e12) and row.aim == 45


def test_trls_best_takes_what_a_gpu_offers(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = part("_train_rounds")
    monkeypatch.setattr(rounds, "find_spec", lambda name: name == "flash_attn")
    assert rounds.tuned(gpu=False) == rounds.TUNED
    added = {"model_init_kwargs": {"attn_implementation": "flash_attention_2"}}
    assert rounds.tuned(gpu=True) == {**rounds.TUNED, **added}


def test_hard_targets(part: Any, tmp_path: Path) -> None:
    rows = [ResponsePair(id=str(i), prompt=[1, 2], chosen=[3], rejected=[4, 5]) for i in range(2)]
    samples = as_input("samples", tmp_path, [])
    pairs = part("_train_pairs").Pairs(policy=tmp_path, rows=rows, samples=samples)
    found = part("_train_rounds").with_reference(pairs, [(-1.0, -2.0), (-3.0, -4.0)])
    assert pairs.tokens == 2 * (2 + 1 + 2 + 2)
    assert [(row.p_w, row.p_l, row.ref_w, row.ref_l) for row in found.rows] == [(1, 0, -1, -2), (1, 0, -3, -4)]


def test_random_pairs_of_a_random_policy(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = part("_train_random")
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    monkeypatch.setitem(part("_random_policy").CONFIGS, "1.5b", {**tiny, "num_key_value_heads": 1})
    pairs = module.random_pairs("1.5b", 6, tmp_path)
    assert len(pairs.rows) == 6 and all(64 <= len(row.chosen) <= 512 <= 1024 - len(row.prompt) for row in pairs.rows)
    assert ends_of_turn(pairs.samples) == {module.END}
    scorer: Any = load_scorer(pairs.policy, "float32")
    assert scorer.num_parameters() > module.VOCABULARY * 8
    assert len(AutoTokenizer.from_pretrained(pairs.policy)) == module.VOCABULARY


def test_a_ratio_is_the_median_within_rounds(part: Any) -> None:
    assert part("_rounds").ratio([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == 3.0


def test_errors_and_ranks(part: Any) -> None:
    rounds = part("_annotate_rounds")
    logits = np.array([[0.0, 1.0, 3.0], [-1.0, 0.0, 0.4], [-3.0, -0.4, 0.0]])
    swapped = np.array([[0.0, -1.0, 3.0], [1.0, 0.0, 0.4], [-3.0, -0.4, 0.0]])
    exact, rough = (rounds.preferences([m.ravel().tolist()]) for m in (logits, swapped))
    errors, spread = rounds.moved(exact, rough)
    p = [1 / (1 + math.exp(-x)) for x in (1.0, 3.0, 0.4)]
    assert errors.tolist() == pytest.approx([2 * p[0] - 1, 0.0, 0.0])
    assert spread == pytest.approx(math.sqrt(sum((x - 0.5) ** 2 for x in p) / 3))
    assert winrate.win_rates(exact[0]).argmax() == 0 and rounds.rank_changes(exact, rough) == (2, 3)
    assert rounds.rank_changes(exact, exact) == (0, 3)


def test_equal_texts_share_a_rank_whatever_the_rounding(part: Any) -> None:
    tied = np.full((3, 3), 0.5)
    rough = tied + np.diag([1e-15, 0.0, -1e-15])
    assert part("_annotate_rounds").rank_changes([tied], [rough]) == (0, 3)


@pytest.mark.parametrize(("source", "longest", "whole"), [(24, 1012, True), (24, 1013, False), (1225, 5, False)])
def test_what_llm_blender_reads_whole(part: Any, source: int, longest: int, whole: bool) -> None:
    assert part("_annotate_rounds").whole(source, [3, longest]) is whole


def test_texts_of_a_file_and_made_up(part: Any, tmp_path: Path) -> None:
    texts = part("_annotate_texts")
    made = texts.texts_of(None, 20, 5)
    assert made == texts.texts_of(None, 20, 5) and made.pairs == 20 * 5 * 4
    assert made.repeated == pytest.approx(1 / texts.REPEATED) and made.responses[3][4] == made.responses[3][3]
    sizes = [len(text.split()) for row in made.responses for text in row]
    assert 60 < np.median(sizes) < 240 and max(sizes) <= texts.MOST
    file = tmp_path / "some.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": f" c{i}", "rejected": f"r{i} "} for i in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = texts.texts_of(file, 2, 3)
    assert (read.name, read.prompts) == ("some.jsonl", ["p0", "p3"])
    assert read.responses == [["c0", "r0", "c1"], ["c3", "r3", "c4"]]
    with refused(DataError, "6 rows", "4 prompts", "8"):
        texts.texts_of(file, 4, 3)
    file.write_text(json.dumps({"prompt": "p"}) + "\n")
    with refused(DataError, "line 1", "prompt, chosen"):
        texts.texts_of(file, 1, 2)
